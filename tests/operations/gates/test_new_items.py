"""Gates on new items, on handmade lists: items 1 to 8 are trained, 9 and 10 are new."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recsys.core.columns import Ragged
from recsys.operations.gates.new_items import NewItemsShown, RecentIndex

DAY, NOW, R = 86_400, 100 * 86_400, 400
GATE = NewItemsShown(min_ratio=0.3, significance_level=0.05, detectable_loss=0.9)
RECENT = RecentIndex(max_days_behind=3.0, recent_days=7.0, min_held=0.5, min_items=2)


def lists(share: float) -> np.ndarray:
    """Return lists of ten items, of which a share of the places holds new items."""
    rng = np.random.default_rng(0)
    shown = np.tile(np.arange(1, 11), (R, 1)).clip(max=8)
    return np.where(rng.random((R, 10)) < share, 9, shown)


def evidence(candidate: float, served: float, record: dict[str, float] | None = None) -> Any:
    dataset = SimpleNamespace(train_count=np.array([0, *[5] * 8, 0, 0]))
    relevant = Ragged(np.tile(np.array([1, 9], np.int32), R), np.arange(R + 1) * 2)
    manifest = SimpleNamespace(record=lambda name: (record or {}).get(name))
    return SimpleNamespace(
        judged=SimpleNamespace(dataset=dataset, relevant=relevant),
        candidate=SimpleNamespace(shown=lists(candidate)),
        served=SimpleNamespace(shown=lists(served), retriever=SimpleNamespace(manifest=manifest)),
    )


@pytest.mark.parametrize(
    ("candidate", "served", "record", "expected"),
    [
        (0.10, 0.10, None, ["pass", "untested"]),
        (0.05, 0.10, None, ["pass", "untested"]),
        (0.00, 0.10, None, ["fail", "untested"]),
        # A served release that is older than the new items cannot show them; what it did when it was made can be told.
        (0.10, 0.00, {"cold_items/shown@100": 0.1, "cold_items/relevant": 0.5}, ["untested", "pass"]),
        (0.00, 0.00, {"cold_items/shown@100": 0.1, "cold_items/relevant": 0.5}, ["untested", "fail"]),
        # A release that never showed any protects nothing.
        (0.00, 0.00, {"cold_items/shown@100": 0.0, "cold_items/relevant": 0.5}, ["untested", "untested"]),
        (0.02, 0.00, {"cold_items/shown@100": 0.1, "cold_items/relevant": 1.0}, ["untested", "pass"]),
    ],
)
def test_hidden_new_items_fail(candidate: float, served: float, record: Any, expected: list[str]) -> None:
    outcomes = [*GATE.judge(evidence(candidate, served, record))]
    assert [row.status for row in outcomes] == expected, outcomes


def indexed(held: list[int], *, until: int = NOW - DAY, born: bool = True, policy: dict[str, int] | None = None) -> Any:
    dataset = SimpleNamespace(
        num_items=6,
        item_idx=np.array([1, 2, 3, 4]),
        time=np.array([NOW - 50 * DAY, NOW - 2 * DAY, NOW - 2 * DAY, NOW - DAY]),
        # Items 3 to 6 are born in the last week, 5 and 6 have no event yet; item 2 is older than its first event.
        born=np.array([0, NOW - 60 * DAY, NOW - 40 * DAY, *[NOW - 3 * DAY] * 4]) if born else None,
        has_features=np.array([False, *[True] * 6]),
        meta=SimpleNamespace(num_known=6),
    )
    manifest = SimpleNamespace(index_time={"now": NOW}, data={"until": until}, corpus=policy or {})
    return SimpleNamespace(
        judged=SimpleNamespace(dataset=dataset),
        candidate=SimpleNamespace(item_idx=np.array(held), retriever=SimpleNamespace(manifest=manifest)),
        window=SimpleNamespace(has_times=True),
        run=SimpleNamespace(model=SimpleNamespace(reads_features=True)),
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (indexed([1, 2, 3, 4, 5, 6]), ["pass", "pass"]),
        (indexed([1, 2, 3]), ["pass", "fail"]),
        (indexed([1, 2, 3, 4, 5, 6], until=NOW - 4 * DAY), ["fail", "pass"]),
        # Without births the first event counts: items 2, 3 and 4.
        (indexed([1, 2], born=False), ["pass", "fail"]),
        (indexed([1, 2, 3], born=False), ["pass", "pass"]),
        # A policy that keeps a third of all items may leave out as many recent ones.
        (indexed([1, 3], policy={"num_items": 2, "of": 6}), ["pass", "pass"]),
    ],
)
def test_old_indexes_and_missing_recent_items_fail(given: Any, expected: list[str]) -> None:
    outcomes = [*RECENT.judge(given)]
    assert [row.status for row in outcomes] == expected, outcomes
