"""Runs, releases and heuristics of a small world in one report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run_all
from publishing import Published
from worlds import compose, write_run

from recsys.core.errors import UserError
from recsys.data.batches.loaders import RequestLoader
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import ModelRanker, evaluate
from recsys.experiments.assembly import open_data
from recsys.experiments.trained_run import load_run
from recsys.index import Exact
from recsys.publishing.promote import promote
from recsys.release.store import ReleaseStore
from recsys.reports.generators.generator_report import GeneratorReport
from recsys.reports.generators.study import Study, study
from recsys.reports.generators.wandb_tables import tables

K = 10
SMALL = [
    "generator.random_walk.num_steps=200",
    "generator.als.iterations=2",
    "generator.als.factors=8",
    "grids.recent_popularity.half_life_days.values=[7]",
    "grids.item_knn.num_neighbours.values=[100]",
    "grids.item_knn.shrink.values=[0]",
    "grids.ease.l2.values=[200]",
    "grids.als.alpha.values=[20]",
    "grids.random_walk.num_recent.values=[null]",
    "~grids.transitions",
]


def options(published: Published, *overrides: str) -> list[str]:
    return [
        f"data.root={published.root}",
        f"data.cache={published.root.parent / 'cache'}",
        "split=leave_last_out",
        f"store={published.store}",
        f"k={K}",
        *SMALL,
        *overrides,
    ]


def studied(published: Published, *overrides: str) -> tuple[Study, list[str]]:
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for module in ("study", "studied_generators"):
            patch.setattr(f"recsys.reports.generators.{module}.say", lines.append)
        return study(compose("generators", options(published, *overrides))), lines


@pytest.fixture(scope="module")
def found(published: Published) -> Study:
    return studied(published, f"runs=[{published.runs[1]}]", "releases=[candidate]")[0]


def test_all_configured_generators_are_measured(found: Study) -> None:
    assert found.figures.names == (
        "run1", "candidate", "popularity", "recent popularity", "followed interests", "item knn", "random walk",
        "transitions", "ease", "als",
    )  # fmt: skip
    assert [source.is_learned for source in found.sources] == [True, True, *[False] * 8]
    assert found.missing == {}
    assert found.chosen_on == "the validation part"
    assert all(
        sum(budgets) == K
        for budgets in (found.plan.everyone, found.plan.equal, *found.plan.stages, *found.plan.without[0].values())
    )


def test_recall_of_a_run_and_of_a_release_is_that_of_the_evaluation(published: Published, found: Study) -> None:
    for number, path in ((0, published.runs[1]), (1, published.runs[0])):
        run = load_run(path)
        metrics = RetrievalMetrics(run.dataset, len(run.corpus), cutoffs=(K,))
        batches = RequestLoader(run.builder, run.dataset.requests("test"))
        values = evaluate(
            ModelRanker(run.model, run.corpus), run.dataset, part="test", batches=batches, metrics=metrics
        )
        assert found.figures.alone[number].recall.value == pytest.approx(values[f"recall@{K}"])
        assert found.figures.num_users == values["num_users"]
        # Models have something for everyone.
        assert found.figures.alone[number].full.value == 1.0


def test_new_items_of_a_run_and_its_release_are_those_of_the_evaluation(published: Published, tmp_path: Path) -> None:
    path = write_run(tmp_path / "temporal", published.root, "item_tower=features", "split=temporal", "split.train=0.5")
    temporal = ("split=temporal", "split.train=0.5", "generators=[popularity,ease]")
    run, store = load_run(path), ReleaseStore(tmp_path / "store")
    version = promote(run, Exact(), store=store, model="m", recall_target=1.0).version
    found, _ = studied(published, *temporal, f"runs=[{path}]", f"releases=[{version}]", f"store={store.root}")
    new = found.figures.new_items
    assert new is not None
    # New items have neither training nor validation events.
    data = run.dataset.refit()
    metrics = RetrievalMetrics(data, len(run.corpus), cutoffs=(K,))
    batches = RequestLoader(run.builder, data.requests("test"))
    values = evaluate(ModelRanker(run.model, run.corpus), data, part="test", batches=batches, metrics=metrics)
    assert new.recall[0].value == pytest.approx(values[f"cold_items/recall@{K}"])
    assert new.shown[0].value == pytest.approx(values[f"cold_items/shown@{K}"])
    assert new.relevant.value == pytest.approx(values["cold_items/relevant"])
    assert new.among[0] is not None
    assert new.among[0].value == pytest.approx(values[f"among_cold_items/recall@{K}"])
    assert new.among[0].value > 0
    assert new.among[1] == new.among[0]
    # No heuristic knows a new item.
    none = [[getattr(each, "value", None) for each in row[2:]] for row in (new.recall, new.shown, new.among)]
    assert none == [[0.0] * 2] * 3
    report = GeneratorReport(found)
    assert any(sentence.startswith("New items are ") for sentence in report.verdicts)
    (section,) = (section for section in report.sections if section.heading == "New items")
    assert section.tables[0].columns == ("generator", "recall of new items", "among new items", "new items shown")
    assert [row[2] for row in section.tables[0].rows].count("0%") == 2
    assert len(tables(found)["new items"][1]) == 4


def test_tables_of_numbers(found: Study) -> None:
    for head, rows in tables(found).values():
        assert all(len(row) == len(head) for row in rows)
    head, rows = tables(found)["generators"]
    row = dict(zip(head, rows[0], strict=True))
    assert (row["generator"], row["kind"]) == ("run1", "learned")
    assert row["recall, low"] <= row["recall"] <= row["recall, high"]
    assert sum(dict(zip(head, row, strict=True))["budget"] for row in rows) == K
    assert len(tables(found)["pairs"][1]) == 10 * 9 / 2


def test_a_model_that_knows_validation_is_chosen_by_test_users_that_are_not_measured(
    published: Published, found: Study, tmp_path: Path
) -> None:
    refitted = write_run(tmp_path / "refitted", published.root, "refit=true", "item_tower=features")
    halves, _ = studied(published, f"runs=[{refitted}]", "generators=[popularity]")
    assert halves.chosen_on == "one half of the test users"
    assert halves.figures.num_users == found.figures.num_users - found.figures.num_users // 2


def test_settings_are_chosen_on_validation(published: Published) -> None:
    grid = "grids.item_knn.num_neighbours.values=[1,100]"
    result, lines = studied(published, "generators=[popularity,item_knn]", grid)
    recall = {}
    for line in lines:
        if match := re.match(rf"item_knn num_neighbours=(\d+), shrink=0: val/recall@{K} ([\d.]+)", line):
            recall[int(match[1])] = float(match[2])
    assert {*recall} == {1, 100}
    assert result.sources[1].detail == f"num_neighbours={max((100, 1), key=lambda n: recall[n])}, shrink=0"


def test_generators_that_do_not_suit_the_data_are_left_out(published: Published) -> None:
    result, lines = studied(published, "data.time=order", "generators=[popularity,recent_popularity,ease]")
    assert result.figures.names == ("popularity", "ease")
    assert "data.time=order has no days" in result.missing["recent_popularity"]
    assert any(line.startswith("recent_popularity: left out") for line in lines)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["generators=[popularty]"], "no generator 'popularty'; did you mean 'popularity'"),
        (["generators=[popularity]"], "found 1 generator, expected at least two"),
        (["k=0"], "k: found 0, expected at least 1"),
        (["tolerance=1"], "tolerance: found 1, expected a share"),
        (["releases=[nobody]"], "has no alias 'nobody'"),
    ],
)
def test_mistakes(published: Published, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        studied(published, *overrides)


def test_a_run_of_another_split(published: Published) -> None:
    with pytest.raises(UserError, match="its data has other .*split.* than the report's"):
        studied(published, f"runs=[{published.runs[0]}]", "split=temporal")


def test_the_command(published: Published, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    out = tmp_path / "report.html"
    command = ["recsys", "generators", "report", *options(published, "releases=[candidate]", f"out={out}")]
    missing = ["recsys", "generators", "reprot", *options(published)]
    (code, log), (wrong, said) = run_all([{"args": [*command, "logger=wandb"]}, {"args": missing}], tmp_path)
    assert code == 0, log
    assert log.splitlines()[-1] == str(out)
    assert "Generators under one budget" in log
    assert [*tmp_path.glob("wandb/offline-run-*/*.wandb")]
    page = out.read_text()
    assert page.count("<figure>") >= 8
    assert "candidate generators: which to keep and which to retire" in page
    assert "://" not in re.sub(r'"data:[^"]*"', "", page)
    assert page.index("Value of each generator") < page.index("Generators to keep and to retire")
    assert (wrong, "recsys generators reprot: no such action; did you mean 'report'?" in said) == (1, True)


def test_users_are_measured_up_to_a_limit(published: Published) -> None:
    result, _ = studied(published, "generators=[popularity,ease]", "max_users=15", "choosing_users=15")
    assert result.figures.num_users == 15
    dataset = open_data(compose("generators", options(published)))
    assert len(np.unique(dataset.requests("test").user_idx)) > 15
