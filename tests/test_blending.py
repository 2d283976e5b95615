"""Which runs add up to a better one, by what validation says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from worlds import write_run, write_world

from recsys import blending
from recsys.blending import choose_blend
from recsys.data.loader import RequestLoader
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import ModelRanker, evaluate
from recsys.runs import load_run, stored_config

METRIC = "val/recall@10"
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("blending")
    root = write_world(base / "data")
    return {name: write_run(base / name, root, "user_tower=mean", seed=n) for n, name in enumerate(NAMES)}


def choose(folders: dict[str, Path], scores: dict[str, float]) -> blending.Chosen:
    runs: dict[str, Any] = {
        name: SimpleNamespace(checkpoints=folders[name] / "checkpoints", metrics={METRIC: score})
        for name, score in scores.items()
    }
    return choose_blend({name: stored_config(folders[name]) for name in scores}, runs, METRIC)


def test_members_join_by_what_they_add(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(weights: dict[str, float], *_: object) -> dict[str, float]:
        asked.append(weights)
        if "c" in weights:
            # Half a percent more than the blend of two: not worth a third tower.
            return {METRIC: 0.4 * 1.005}
        return {METRIC: {0.25: 0.35, 0.5: 0.4, 0.75: 0.2}[weights["a"]]}

    monkeypatch.setattr(blending, "_measure", measure)
    chosen = choose(folders, {"a": 0.3, "c": 0.1, "b": 0.32})
    # The best first, then the next best, each with three shares.
    assert chosen.weights == {"b": 0.5, "a": 0.5}
    assert chosen.metrics == {METRIC: 0.4}
    assert asked[:3] == [{"b": 0.75, "a": 0.25}, {"b": 0.5, "a": 0.5}, {"b": 0.25, "a": 0.75}]
    assert asked[3:] == [{"b": 0.375, "a": 0.375, "c": 0.25}, {"b": 0.25, "a": 0.25, "c": 0.5},
                         {"b": 0.125, "a": 0.125, "c": 0.75}]  # fmt: skip


def test_the_best_stays_alone_where_nothing_improves_it(folders: dict[str, Path]) -> None:
    chosen = choose(folders, {"a": 0.99, "b": 0.98})
    assert chosen.weights == {"a": 1.0}
    assert chosen.metrics == {METRIC: 0.99}


def test_a_blend_is_measured_as_runs_are(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_run(folders["a"])
    requests = run.dataset.requests("val")
    metrics = RetrievalMetrics(run.dataset, len(run.corpus))
    ranker = ModelRanker(run.model, run.corpus)
    expected = evaluate(ranker, run.dataset, "val", RequestLoader(run.builder, requests, 7), metrics)
    measured = []

    def measure(_: dict[str, float], embedded: Any, corpus: Any, *rest: Any) -> dict[str, float]:
        measured.append(real({"a": 2.0}, embedded, corpus, *rest))
        return measured[-1]

    real = blending._measure
    monkeypatch.setattr(blending, "_measure", measure)
    choose(folders, {"a": 0.9, "b": 0.8})
    assert measured[0] == pytest.approx({f"val/{name}": value for name, value in expected.items()})
