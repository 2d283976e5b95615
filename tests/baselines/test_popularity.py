"""Popularity against counts that are worked out, and its exclusion against a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from handmade import handmade, ragged, random_users
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.baselines.interactions import Interactions
from recsys.baselines.popularity import Popularity
from recsys.core.errors import UserError
from recsys.data.batches.builder import BatchBuilder
from recsys.data.dataset import Requests

# Days 0, 1, 2, ... of each user. Counts in training: 1 twice, 2 once; with validation also 3 three times.
DATA = handmade([([1, 2], [3, 3], [1]), ([1], [3], [])])
INFINITE = float("inf")


def fitted(until: str = "val", dataset: Any = DATA, **options: float) -> Popularity:
    generator = Popularity(**options)
    generator.fit(Interactions(dataset, until))  # type: ignore[arg-type]
    return generator


def test_counts(rank: Callable[..., Any]) -> None:
    assert rank(fitted("train"), DATA, [0], [2], 3) == ([[2, 1, -INFINITE]], [[1, 2, 0]])
    assert rank(fitted("val"), DATA, [0, -1], [4, 0], 3) == ([[3, 2, 1]] * 2, [[3, 1, 2]] * 2)


def test_excluded_items_make_room(rank: Callable[..., Any]) -> None:
    # Items 5 and 0 are not ranked at all.
    exclude = ragged([3, 3, 5, 0], [1, 3], [], [1, 2, 3])
    data = handmade([([1, 2], [3, 3], [4, 5]), ([1], [3], [])])
    scores, items = rank(fitted(dataset=data), data, [0] * 4, [4] * 4, 2, exclude)
    assert items == [[1, 2], [2, 0], [3, 1], [0, 0]]
    assert scores == [[2, 1], [1, -INFINITE], [3, 2], [-INFINITE] * 2]


def test_window(rank: Callable[..., Any]) -> None:
    # The last event is of day 3: a window of one day holds the days 2 and 3, where 3 happens twice. What is outside
    # follows by all of its events: 1 twice, 2 once.
    assert rank(fitted(window_days=1), DATA, [0], [4], 3) == ([[2, 0, 0]], [[3, 1, 2]])


def test_half_life(rank: Callable[..., Any]) -> None:
    # With a half-life of one day an event of day d counts 2^(d - 3): 3 happens on days 1, 2, 3; 1 twice on 0; 2 on 1.
    scores, items = rank(fitted(half_life_days=1), DATA, [0], [4], 3)
    assert items in ([[3, 1, 2]], [[3, 2, 1]])
    assert scores == [[1.75, 0.25, 0.25]]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 30))
def test_exclusion_equals_a_plain_loop(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    dataset = handmade([([1], [], []), *random_users_with_one(rng)])
    generator = fitted(dataset=dataset)
    requests = Requests(np.zeros(8, np.int64), np.ones(8, np.int64))
    rows = [rng.integers(0, dataset.num_items + 1, rng.integers(0, 30)).tolist() for _ in range(8)]
    batch = BatchBuilder(dataset, 1).requests(requests)
    everything = generator.rank(batch, requests, k=dataset.num_items, exclude=None)[1][0].tolist()
    found = generator.rank(batch, requests, k=k, exclude=ragged(*rows))[1].tolist()
    for row, gone in enumerate(rows):
        left = [item for item in everything if item and item not in gone][:k]
        assert found[row] == left + [0] * (k - len(left))


def random_users_with_one(rng: np.random.Generator) -> Any:
    """Random users over items that include item 1, as the layout wants it."""
    while True:
        users = random_users(rng, 10, 20)
        if any(1 in train for train, _, _ in users):
            return users


@pytest.mark.parametrize("time_resolution", ["order", "none"])
def test_days_need_a_clock(time_resolution: str) -> None:
    with pytest.raises(UserError, match=f"data.time={time_resolution} has no days"):
        fitted(dataset=handmade([([1], [], [])], time_resolution=time_resolution), half_life_days=1)


@pytest.mark.parametrize("name", ["window_days", "half_life_days"])
def test_days_are_positive(name: str) -> None:
    with pytest.raises(UserError, match=f"generator.{name}=0: expected a positive number"):
        Popularity(**{name: 0})
