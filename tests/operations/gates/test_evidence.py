"""Measurements of the gates equal those of training's evaluation and figures computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from publishing import Published
from worlds import write_world

from recsys.data.batches.loaders import RequestLoader
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import ModelRanker, evaluate, per_user_table
from recsys.experiments.assembly import open_data
from recsys.experiments.trained_run import TrainedRun, load_run
from recsys.operations.gates.event_window import EventWindow
from recsys.operations.gates.evidence import Evidence, JudgedRelease, K
from recsys.operations.gates.judged_requests import action_columns, choose_requests
from recsys.operations.gates.staging import open_release
from recsys.publishing.recommenders import with_root


@pytest.fixture(scope="module")
def run(published: Published) -> TrainedRun:
    return load_run(published.runs[0])


@pytest.fixture(scope="module")
def side(published: Published, run: TrainedRun) -> JudgedRelease:
    return JudgedRelease(
        open_release(published.store, published.versions[0]), choose_requests(run.dataset, True, most=None)
    )


def test_a_release_is_measured_as_training_measures(run: TrainedRun, side: JudgedRelease) -> None:
    dataset = run.dataset
    metrics = RetrievalMetrics(dataset, len(run.corpus), keep_users=True)
    batches = RequestLoader(run.builder, dataset.requests("test"))
    expected = evaluate(ModelRanker(run.model, run.corpus), dataset, part="test", batches=batches, metrics=metrics)
    for name, value in expected.items():
        # A release is not asked for lists of new items alone.
        if not name.startswith(("coverage", "among_cold_items")):
            assert side.metrics[name] == pytest.approx(value, abs=1e-6), name
    table = per_user_table(dataset, metrics)
    for name, values in side.per_user.items():
        if name in table.column_names and not name.startswith("among_cold_items"):
            np.testing.assert_allclose(values, table[name].to_numpy(), atol=1e-6)


def test_recall_by_action_counts_items_with_such_an_event(run: TrainedRun, side: JudgedRelease) -> None:
    dataset, judged = run.dataset, side.judged
    assert [feature.name for feature in action_columns(dataset)] == ["action"]
    (feature,) = action_columns(dataset)
    values = dataset.vocabulary(feature).to_pylist()
    assert {f"action={value}" for value in values} == {*judged.relevant_of_actions}
    codes = dataset.columns[feature.key].values
    for number, value in enumerate(values):
        expected = []
        for row, (user, end) in enumerate(zip(*judged.requests, strict=True)):
            wanted = set(
                judged.relevant.values[judged.relevant.offsets[row] : judged.relevant.offsets[row + 1]].tolist()
            )
            events = range(end, dataset.offsets[user + 1])
            items = {int(dataset.item_idx[at]) for at in events if codes[at] == number + 2} & wanted
            if wanted:
                shown = set(side.shown[row].tolist())
                expected.append(len(items & shown) / len(items) if items else np.nan)
        np.testing.assert_allclose(side.per_user[f"action={value}/recall@{K}"], expected)


def test_relevant_items_before_and_after_a_moment(run: TrainedRun, side: JudgedRelease) -> None:
    dataset, judged = run.dataset, side.judged
    moment = int(np.median(dataset.time[dataset.val_end[judged.requests.user_idx]]))
    new, before = judged.relevant_since(moment)
    assert len(new.values) + len(before.values) == len(judged.relevant.values)
    for row, end in enumerate(judged.requests.end):
        late = {int(dataset.item_idx[end])} if dataset.time[end] >= moment else set()
        wanted = set(judged.relevant.values[judged.relevant.offsets[row] : judged.relevant.offsets[row + 1]].tolist())
        assert set(new.values[new.offsets[row] : new.offsets[row + 1]].tolist()) == late & wanted


def test_items_unknown_to_the_data_set_are_shown_as_zero(run: TrainedRun, side: JudgedRelease, tmp_path: Path) -> None:
    root = write_world(tmp_path / "data", seed=5)
    dataset = open_data(with_root(run.config, str(root)))
    other = JudgedRelease(side.retriever, choose_requests(dataset, True, most=20))
    assert len(other.judged.requests.user_idx) == 20
    ids = side.retriever.items["item_id"].combine_chunks()
    known = np.array([item in set(dataset.item_ids.to_pylist()) for item in ids.to_pylist()])
    np.testing.assert_array_equal(other.item_idx > 0, known)
    scores, rows = other.recommender.rank(other.judged.requests, K, exclude_seen=True, request_features={})
    shown = [[dataset.item_ids[i - 1].as_py() if i else None for i in row] for row in other.shown[:, :5].tolist()]
    told = ids.take(pa.array(rows[:, :5].flatten())).to_pylist()
    assert [item for row in shown for item in row if item is not None] == [
        item for item in told if item in set(dataset.item_ids.to_pylist())
    ]
    np.testing.assert_array_equal(other.scores, scores)


def test_popularity_is_that_of_training(run: TrainedRun, side: JudgedRelease) -> None:
    evidence = Evidence(
        run=run, judged=side.judged, candidate=side, served_side=side, window=EventWindow(run.dataset), now=0
    )
    counts = run.dataset.train_count
    found = []
    for row, (user, end) in enumerate(zip(*side.judged.requests, strict=True)):
        seen = set(run.dataset.item_idx[run.dataset.offsets[user] : end].tolist())
        order = [i for i in np.argsort(-counts[1:], kind="stable") + 1 if i not in seen][:5]
        wanted = side.judged.relevant.values[side.judged.relevant.offsets[row] : side.judged.relevant.offsets[row + 1]]
        if len(wanted):
            found.append(len({*order} & {*wanted.tolist()}) / len(wanted))
    # Items of equal counts may come in either order.
    assert evidence.popular["recall@5"].mean() == pytest.approx(np.mean(found), abs=0.05)
    assert torch.isfinite(torch.from_numpy(evidence.popular["ndcg@10"])).all()
