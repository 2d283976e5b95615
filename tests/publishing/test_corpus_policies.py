"""Which items enter the index: sums by hand, quotas, files, and a release that holds the choice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import DAY, handmade
from publishing import Published

from recsys.core.columns import Dense
from recsys.core.errors import UserError
from recsys.core.schema import Feature, Schema, TimeResolution
from recsys.data.dataset import PreparedDataset, Requests
from recsys.experiments.trained_run import load_run
from recsys.index import Exact
from recsys.publishing.corpus_policies import AllItems, EngagedItems, ListedItems, choose_items, engagement
from recsys.publishing.promote import promote, report
from recsys.publishing.recommenders import ReleaseRecommender, RunRecommender
from recsys.release.manifest import Manifest
from recsys.release.runtime.retriever import Retriever
from recsys.release.store import ReleaseStore

CORPUS = np.arange(1, 7)


@pytest.fixture
def data(tmp_path: Path) -> PreparedDataset:
    """Item 1 on day 0; 2 on days 1 and 2; 3 on day 0; 4 (validation) on day 1; 5 in the test part alone; 6 never."""
    plain = handmade([([1, 2, 2], [], []), ([3], [4], [5])], num_known=6, path=tmp_path)
    (tmp_path / "vocabularies").mkdir()
    pq.write_table(pa.table({"item_id": [f"i{n}" for n in range(1, 7)]}), tmp_path / "vocabularies/items.parquet")
    born = np.array([np.nan, 1, 2, 3, 4, 9, np.nan], np.float32)
    schema = Schema((Feature("born", "items", "numeric", "item", 1),), item_id_type="string")
    return dataclasses.replace(plain, schema=schema, columns={"items.born": Dense(born)})


def chosen(policy: Any, data: PreparedDataset) -> list[int]:
    return choose_items(policy, data, corpus=CORPUS).tolist()


def test_engagement_is_a_time_decayed_sum(data: PreparedDataset) -> None:
    sums, first = engagement(data, half_life_days=1)
    # Day 2 is the newest before the test part: an event on day 1 counts 1/2, one on day 0 1/4.
    assert sums.tolist() == [0, 0.25, 1.5, 0.25, 0.5, 0, 0]
    assert first[1:5].tolist() == [0, DAY, 0, DAY]
    assert np.isnan(first[[5, 6]]).all()


def test_bounds(data: PreparedDataset) -> None:
    assert chosen(AllItems(), data) == [1, 2, 3, 4, 5, 6]
    assert chosen(EngagedItems(1, at_least=0.5), data) == [2, 4]
    assert chosen(EngagedItems(1, top=1), data) == [2]
    # Of equals the first; items without engagement are never among the best.
    assert chosen(EngagedItems(1, top=3), data) == [1, 2, 4]
    assert chosen(EngagedItems(1, top=10), data) == [1, 2, 3, 4]
    assert chosen(EngagedItems(1, at_least=0.25, top=2), data) == [2, 4]
    # A longer half-life forgives age: two events of item 2, one of each other.
    assert chosen(EngagedItems(1e6, at_least=0.99), data) == [1, 2, 3, 4]


def test_the_newest_others(data: PreparedDataset) -> None:
    # By their column: 5 came last, then 3. By first event, 1 and 3 came at once, and 5 and 6 never.
    assert chosen(EngagedItems(1, at_least=0.5, num_fresh=1, born="born"), data) == [2, 4, 5]
    assert chosen(EngagedItems(1, at_least=0.5, num_fresh=2, born="born"), data) == [2, 3, 4, 5]
    assert chosen(EngagedItems(1, top=1, num_fresh=1), data) == [2, 4]
    with pytest.raises(UserError, match="corpus.born=bron: there is no such numeric column.*did you mean 'born'"):
        chosen(EngagedItems(1, top=1, num_fresh=1, born="bron"), data)


def test_files(data: PreparedDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    allow, deny = tmp_path / "allow.txt", tmp_path / "deny.txt"
    allow.write_text("i6\n\ni1\nnobody\n")
    deny.write_text("i2\n i6 \n")
    assert chosen(EngagedItems(1, at_least=0.5, allow=str(allow)), data) == [1, 2, 4, 6]
    assert "1 of 3 ids are unknown" in caplog.text
    assert chosen(EngagedItems(1, at_least=0.5, allow=str(allow), deny=str(deny)), data) == [1, 4]
    assert chosen(ListedItems(allow=str(allow)), data) == [1, 6]
    assert chosen(ListedItems(deny=str(deny)), data) == [1, 3, 4, 5]
    assert chosen(ListedItems(str(allow), str(deny)), data) == [1]


def test_mistakes(data: PreparedDataset, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("a\nb\n")
    for policy, message in (
        (ListedItems(), "expected corpus.allow=FILE, corpus.deny=FILE or both"),
        (ListedItems(allow=str(wrong)), "none of its 2 ids is an item"),
        (ListedItems(deny=str(tmp_path / "missing")), "corpus.deny=.*missing: not a readable text file"),
        (EngagedItems(1), "expected corpus.at_least=SUM, corpus.top=NUMBER or both"),
        (EngagedItems(1, at_least=9), "leaves none of 6 items"),
    ):
        with pytest.raises(UserError, match=message):
            chosen(policy, data)
    timeless = dataclasses.replace(data, meta=dataclasses.replace(data.meta, time_resolution=TimeResolution.ORDER))
    with pytest.raises(UserError, match="data.time=order has no days"):
        chosen(EngagedItems(1, top=1), timeless)
    with pytest.raises(UserError, match="corpus.half_life_days=0"):
        EngagedItems(0)
    with pytest.raises(UserError, match="corpus.top=-1"):
        EngagedItems(top=-1)


def test_a_release_of_chosen_items(published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = load_run(published.runs[0])
    store, policy = ReleaseStore(tmp_path), EngagedItems(half_life_days=1, top=20)
    items = choose_items(policy, run.dataset, corpus=run.corpus)
    promotion = promote(run, Exact(), store=store, model="test", policy=policy)
    manifest = store.open(promotion.version)[1]
    assert manifest.num_items == len(items) == 20
    assert {"policy": "engaged", "top": 20, "num_items": 20, "of": len(run.corpus)}.items() <= manifest.corpus.items()
    # The recall of all items is that of the run; fewer items cannot be asked for what they lack.
    test = manifest.corpus["test"]
    assert {*test} == {"all", "chosen"}
    retriever = Retriever.load(tmp_path, promotion.version)
    recommender = ReleaseRecommender(retriever, run.dataset)
    requests = run.dataset.requests("test")
    _, rows = recommender.rank(requests, 10, exclude_seen=True, request_features={})
    shown = recommender.item_ids.take(pa.array(rows[rows >= 0]))
    assert {*shown.to_pylist()} <= {*run.dataset.item_ids.take(pa.array(items - 1)).to_pylist()}
    assert test["chosen"]["recall@10"] == pytest.approx(_recall(recommender, run.dataset, requests))
    assert test["all"]["recall@10"] == pytest.approx(_recall(RunRecommender(run), run.dataset, requests))
    report(promotion)
    printed = capsys.readouterr().out
    assert f"{len(run.corpus) - 20} of {len(run.corpus)} (engaged)" in printed
    assert f"{test['chosen']['recall@10']:.4f} (all items: {test['all']['recall@10']:.4f})" in printed


def _recall(recommender: Any, dataset: PreparedDataset, requests: Requests) -> float:
    """Recall@10 by a plain loop over users with something to find."""
    _, rows = recommender.rank(requests, 10, exclude_seen=True, request_features={})
    found = []
    for user, begin, row in zip(requests.user_idx, requests.end, rows, strict=True):
        first, last = dataset.offsets[user : user + 2]
        wanted = {*dataset.item_idx[begin:last].tolist()} - {*dataset.item_idx[first:begin].tolist()}
        shown = {*recommender.item_ids.take(pa.array(row[row >= 0])).to_pylist()}
        if wanted:
            names = {dataset.item_ids[item - 1].as_py() for item in wanted}
            found.append(len(shown & names) / len(names))
    return float(np.mean(found))


def test_manifests_without_a_corpus_load(published: Published) -> None:
    path = published.store / published.versions[0] / "manifest.json"
    content = json.loads(path.read_text())
    assert content["corpus"] == {"policy": "all", "num_items": content["num_items"], "of": content["num_items"]}
    del content["corpus"]
    assert Manifest.from_json(content).corpus == {}
