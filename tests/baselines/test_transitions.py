"""Transitions against counts that are worked out, and against a plain loop over pairs of events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from handmade import handmade, ragged, random_users, training_only

from recsys.baselines import interactions, transitions
from recsys.baselines.interactions import Interactions
from recsys.baselines.transitions import Transitions
from recsys.core.errors import UserError

# Events: item 1 three times, 2 three times, 3 twice, 4 once. User 3 has no history.
DATA = handmade([([1, 2, 3], [], [4]), ([1, 2], [], []), ([2, 1, 3, 4], [], []), ([], [], [1])])
PLAIN: dict[str, Any] = {"decay": 1.0, "backward": 0.0, "normalise_from": 0.0}


def fitted(dataset: Any = DATA, **options: Any) -> Transitions:
    generator = Transitions(**options)
    generator.fit(Interactions(dataset, "train"))
    return generator


def strengths(generator: Transitions) -> np.ndarray:
    found = generator._strengths
    return np.asarray(found if isinstance(found, np.ndarray) else found.toarray())


def test_first_order_gives_probabilities() -> None:
    # 1 -> 2 twice and -> 3 once, of three events; 2 -> 3 once and -> 1 once, of three; 3 -> 4 once, of two.
    found = strengths(fitted(num_steps=1, backward=0, normalise_from=1))
    third = 1 / 3
    np.testing.assert_allclose(
        found, [[0, 2 * third, third, 0], [third, 0, third, 0], [0, 0, 0, 0.5], [0, 0, 0, 0]], rtol=1e-6
    )


def test_orders_decay_with_the_distance() -> None:
    # Distance 2 counts half: 1 -> 3 (user 0), 2 -> 3 and 1 -> 4 (user 2). Distance 3 counts a third: 2 -> 4 (user 2).
    expected = np.array([[0, 2, 1.5, 0.5], [1, 0, 1.5, 1 / 3], [0, 0, 0, 1], [0, 0, 0, 0]])
    np.testing.assert_allclose(strengths(fitted(num_steps=3, **PLAIN)), expected, rtol=1e-6)
    backward = strengths(fitted(num_steps=3, **PLAIN | {"backward": 0.5}))
    np.testing.assert_allclose(backward, expected + expected.T / 2, rtol=1e-6)
    # Items have 3, 3, 2 and 1 events.
    both = strengths(fitted(num_steps=3, **PLAIN | {"normalise_from": 1.0, "normalise_to": 0.5}))
    sizes = np.array([3, 3, 2, 1])
    np.testing.assert_allclose(both, expected / sizes[:, None] / np.sqrt(sizes), rtol=1e-6)


def test_the_history_decays_too(rank: Callable[..., Any]) -> None:
    # Before the test event user 0 has 1, 2, 3: three, two and one places back.
    # 1: 1/2 from 2. 2: 2/3 from 1. 3: 1.5/3 + 1.5/2. 4: (1/2)/3 + (1/3)/2 + 1.
    [scores], [items] = rank(fitted(num_steps=3, **PLAIN), DATA, [0], [3], 4)
    assert items == [4, 3, 2, 1]
    assert scores == pytest.approx([4 / 3, 5 / 4, 2 / 3, 1 / 2])
    # The last event alone leads to 4; the others follow by popularity (1 before 2), below 0.
    [scores], [items] = rank(fitted(num_steps=3, num_recent=1, **PLAIN), DATA, [0], [3], 3, ragged([3]))
    assert items == [4, 1, 2]
    assert scores[0] == pytest.approx(1)
    assert scores[1] < 0


def test_events_of_equal_time_do_not_follow_each_other() -> None:
    data = training_only([[(1, 0), (2, 5), (3, 5), (4, 9)]])
    found = strengths(fitted(data, num_steps=2, **PLAIN))
    # 2 and 3 come together: 1 -> 2 and 3 -> 4 at distance 1, 1 -> 3 and 2 -> 4 at distance 2.
    np.testing.assert_allclose(found, [[0, 1, 0.5, 0], [0, 0, 0, 0.5], [0, 0, 0, 1], [0, 0, 0, 0]])


def test_old_transitions_fade() -> None:
    # handmade events are one day apart: the last one is on day 3.
    found = strengths(fitted(num_steps=1, half_life_days=1, **PLAIN))
    # 1 -> 2 on day 1 twice, 1 -> 3 on day 2; 2 -> 3 on day 2, 2 -> 1 on day 1; 3 -> 4 on day 3.
    np.testing.assert_allclose(found, [[0, 0.5, 0.5, 0], [0.25, 0, 0.5, 0], [0, 0, 0, 1], [0, 0, 0, 0]])


def test_without_an_order_every_item_follows_every_other(rank: Callable[..., Any]) -> None:
    data = handmade([([1, 2, 2], [], [3]), ([1, 2], [], []), ([1, 3], [], [])], time_resolution="none")
    generator = fitted(data, normalise_from=0)
    np.testing.assert_allclose(strengths(generator), [[0, 2, 1], [2, 0, 0], [1, 0, 0]])
    # From 1 and 2 (twice): 1 gets 2, 2 gets 2, 3 gets 1. No event is nearer than another.
    assert rank(generator, data, [0], [3], 3) == ([[2, 2, 1]], [[1, 2, 3]])


def test_repeats_follow_themselves(rank: Callable[..., Any]) -> None:
    data = handmade([([1, 1, 2], [], []), ([1], [], [1])])
    assert strengths(fitted(data, num_steps=1, **PLAIN)).tolist() == [[1, 1], [0, 0]]
    assert rank(fitted(data, num_steps=1, **PLAIN), data, [1], [4], 1) == ([[1]], [[1]])


@pytest.mark.parametrize("time_resolution", ["seconds", "none"])
def test_every_item_keeps_its_strongest(time_resolution: str) -> None:
    data = handmade([([1, 2], [], []), ([1, 2], [], []), ([1, 3], [], [])], time_resolution=time_resolution)
    found = strengths(fitted(data, num_neighbours=1, **PLAIN))
    assert found[0].tolist() == [0, 2, 0]


def test_equals_a_loop_over_pairs(rank: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transitions, "NUM_ENTRIES", 200)
    monkeypatch.setattr(interactions, "NUM_ENTRIES", 200)
    dataset = handmade(random_users(np.random.default_rng(0), 60, 30))
    generator = fitted(dataset, num_steps=3, decay=0.5, backward=0.25, normalise_to=0.5, num_recent=4)
    num_items = generator._events.num_items
    sizes = generator._events.counts()
    expected = np.zeros((num_items, num_items))
    for begin, end in zip(dataset.offsets[:-1], dataset.train_end, strict=True):
        history = dataset.item_idx[begin:end] - 1
        for one in range(len(history)):
            for other in range(one + 1, min(one + 4, len(history))):
                expected[history[one], history[other]] += (other - one) ** -0.5
                expected[history[other], history[one]] += 0.25 * (other - one) ** -0.5
    expected /= sizes[:, None] ** 0.25 * sizes**0.5
    np.testing.assert_allclose(strengths(generator), expected, rtol=1e-5)
    requests = dataset.requests("test")
    scores, items = rank(generator, dataset, requests.user_idx.tolist(), requests.end.tolist(), num_items)
    for row, (user, end) in enumerate(zip(requests.user_idx, requests.end, strict=True)):
        wanted = np.zeros(num_items)
        history = dataset.item_idx[dataset.offsets[user] : end][-4:]
        for place, item in enumerate(history):
            if item <= num_items:
                wanted += (len(history) - place) ** -0.5 * expected[item - 1]
        wanted = np.where(wanted > 0, wanted, generator._fallback)
        np.testing.assert_allclose(wanted[np.array(items[row]) - 1], scores[row], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "generator.num_steps=0: expected at least 1"),
        ({"num_recent": 0}, "generator.num_recent=0: expected at least 1"),
        ({"backward": 2}, "generator.backward=2: expected a number from 0 to 1"),
        ({"decay": -1}, "generator.decay=-1: expected 0 or more"),
        ({"normalise_to": float("nan")}, "generator.normalise_to=nan: expected 0 or more"),
        ({"half_life_days": 0}, "generator.half_life_days=0: expected a positive number of days"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Transitions(**options)


def test_refuses_days_without_a_clock() -> None:
    with pytest.raises(UserError, match="generator.half_life_days=7: data.time=order has no days"):
        fitted(handmade([([1, 2], [], [])], time_resolution="order"), half_life_days=7)
