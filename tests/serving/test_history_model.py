"""The checker of `benchmarks/serving_history.py` finds each kind of contradiction, and nothing in a right history."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
INF = float("inf")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("history_model")


def found(module: Any, *operations: Any, kept: dict[str, frozenset[int]] | None = None) -> list[str]:
    """Return the kinds of contradictions of a history, for one query whose user has seen item 4."""
    scores = {("a", "a"): [4, 3, 2, 1, 9], ("a", "b"): [8, 7, 6, 5, 9], ("b", "b"): [1, 2, 3, 4, 9]}
    arrays = {pair: np.array([of_items], np.float64) for pair, of_items in scores.items()}
    history = module.History()
    for operation in operations:
        history.add(operation)
    wrong = module.check(history, module.Model([0, 1, 2, 3, 4], arrays, [frozenset({4})], k=2), kept or {})
    return [one.partition(":")[0] for one in wrong]


def test_a_right_history_has_no_contradiction(model: Any) -> None:
    asked, taken = model.Asked, model.TakenDown
    operations = [
        model.Stored("u", 7, 1.0, True), model.Stored("u", 8, 2.0, False),
        # A read during which an event was stored, one after it, and one without the store.
        model.Read("u", 0.5, frozenset(), False), model.Read("u", 3.0, frozenset({7}), False),
        model.Read("u", 3.0, frozenset(), True),
        asked(0, 1.0, 2.0, ("a", "a", "a"), (0, 1), (4.0, 3.0)),
        asked(0, 1.0, 2.0, ("b", "b", "b"), (3, 2), (4.0, 3.0)),
        # Item 0 may be shown until its takedown is acknowledged, and may be left out before, also without another one.
        taken(0, 5.0, 7.0), asked(0, 5.5, 6.0, ("a", "a", "a"), (0, 1), (4.0, 3.0)),
        asked(0, 5.5, 6.0, ("a", "a", "a"), (1, 2), (3.0, 2.0)), asked(0, 5.5, 6.0, ("a", "a", "a"), (1,), (3.0,)),
        asked(0, 7.5, 8.0, ("a", "a", "a"), (1, 2), (3.0, 2.0)), taken(1, 9.0, INF),
        asked(0, 9.5, 10.0, ("a", "a", "a"), (1, 2), (3.0, 2.0)),
        asked(0, 9.5, 10.0, ("a", "a", "a"), (2, 3), (2.0, 1.0)),
    ]  # fmt: skip
    assert found(model, *operations, kept={"u": frozenset({7})}) == []


def test_each_contradiction_is_found(model: Any) -> None:
    asked = model.Asked
    assert found(model, model.Stored("u", 7, 1.0, True), kept={"u": frozenset({8})}) == ["lost"]
    late = model.Read("u", 3.0, frozenset({8}), False)
    assert found(model, model.Stored("u", 7, 1.0, True), late, kept={"u": frozenset({7})}) == ["unseen"]
    assert found(model, asked(0, 1.0, 2.0, ("a", "a", "b"), (0, 1), (4.0, 3.0))) == ["mixed"]
    assert found(model, asked(0, 1.0, 2.0, ("c", "c", "c"), (0, 1), (4.0, 3.0))) == ["mixed"]
    # The scores of another version, and of a tower and an index that do not belong together.
    assert found(model, asked(0, 1.0, 2.0, ("a", "a", "a"), (3, 2), (4.0, 3.0))) == ["mixed"]
    assert found(model, asked(0, 1.0, 2.0, ("a", "a", "a"), (0, 1), (8.0, 7.0))) == ["mixed"]
    assert found(model, asked(0, 1.0, 2.0, ("a", "a", "a"), (0, 2), (4.0, 2.0))) == ["wrong"]
    assert found(model, asked(0, 1.0, 2.0, ("a", "a", "a"), (0,), (4.0,))) == ["wrong"]
    taken = model.TakenDown(0, 1.0, 2.0)
    assert found(model, taken, asked(0, 3.0, 4.0, ("a", "a", "a"), (0, 1), (4.0, 3.0))) == ["stale"]
    short = asked(0, 3.0, 4.0, ("a", "a", "a"), (1,), (3.0,))
    assert found(model, taken, short) == ["wrong"]
    # A takedown of an item that would not have been shown explains no short answer.
    assert found(model, taken, model.TakenDown(3, 1.0, INF), short) == ["wrong"]
