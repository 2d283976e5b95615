"""Random walks against probabilities that are worked out, and against the exact distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from handmade import handmade, ragged, random_users

from recsys.baselines import random_walk
from recsys.baselines.interactions import Interactions
from recsys.baselines.random_walk import RandomWalk, walks_at_step
from recsys.core.errors import UserError

# Item 1 belongs to users 0 and 2, item 2 to 0 and 1, item 3 to 1; user 2 has nothing else. User 3 is new.
DATA = handmade([([1, 2], [], [3]), ([2, 3], [], []), ([1], [], []), ([], [], [1])])


def fitted(dataset: Any = DATA, until: Any = "train", **options: Any) -> RandomWalk:
    generator = RandomWalk(**options)
    generator.fit(Interactions(dataset, until))
    return generator


def exact(generator: RandomWalk) -> np.ndarray:
    """Share of visits of walks of any length: sum of restart (1 - restart)^(t - 1) S^t over t, S being one step."""
    edges = generator._events.users.toarray().astype(float)
    edges = edges[edges.any(1)]
    step = (edges.T / edges.sum(0)[:, None]) @ (edges / edges.sum(1)[:, None])
    return generator.restart * step @ np.linalg.inv(np.eye(len(step)) - (1 - generator.restart) * step)


def frequencies(generator: RandomWalk) -> np.ndarray:
    roots = generator._roots
    return (roots if isinstance(roots, np.ndarray) else roots.toarray()).astype(float) ** 2


def test_single_steps_by_hand() -> None:
    # From 1: by user 0 (1/2) to 1 or 2, by user 2 (1/2) to 1. From 2: by 0 to 1 or 2, by 1 to 2 or 3. From 3: by 1.
    found = frequencies(fitted(restart=1.0, num_steps=100_000))
    np.testing.assert_allclose(found, [[3 / 4, 1 / 4, 0], [1 / 4, 1 / 2, 1 / 4], [0, 1 / 2, 1 / 2]], atol=0.01)


def test_second_steps_by_hand() -> None:
    # S of the test above for the first step of all walks, S^2 for the second step of half of them.
    events = Interactions(DATA, "train")
    items, rng = events.users.T.tocsr(), np.random.default_rng(0)
    visits = random_walk._walk(
        np.arange(3, dtype=np.int32), np.array([200_000, 100_000]), items=items, users=events.users, rng=rng
    )
    assert visits.shape == (3, 300_000)
    for row, (first, second) in enumerate(zip(visits[:, :200_000], visits[:, 200_000:], strict=True)):
        once, twice = (np.bincount(visited, minlength=3) / len(visited) for visited in (first, second))
        np.testing.assert_allclose(once, [[3 / 4, 1 / 4, 0], [1 / 4, 1 / 2, 1 / 4], [0, 1 / 2, 1 / 2]][row], atol=0.006)
        expected = [[5 / 8, 5 / 16, 1 / 16], [5 / 16, 7 / 16, 1 / 4], [1 / 8, 1 / 2, 3 / 8]][row]
        np.testing.assert_allclose(twice, expected, atol=0.008)


@pytest.mark.parametrize("restart", [0.2, 0.5, 0.9])
def test_frequencies_converge_to_the_exact_distribution(restart: float) -> None:
    dataset = handmade(random_users(np.random.default_rng(0), 60, 20))
    few, many = (fitted(dataset, restart=restart, num_steps=n) for n in (500, 200_000))
    np.testing.assert_allclose(frequencies(many), exact(many), atol=0.006)
    # Four hundred times the steps make a twentieth of the error.
    errors = [np.sqrt(np.mean((frequencies(g) - exact(g)) ** 2)) for g in (few, many)]
    assert errors[1] < errors[0] / 10


def test_walks_take_the_expected_number_of_steps() -> None:
    # Eight walks; half of them end after each step.
    assert walks_at_step(16, 0.5).tolist() == [8, 4, 2, 1]
    assert walks_at_step(10, 1.0).tolist() == [10]
    assert walks_at_step(1, 0.5).tolist() == [1]
    for restart in (0.1, 0.3, 0.85):
        assert walks_at_step(10_000, restart).sum() == pytest.approx(10_000, rel=0.01)


def test_steps_of_a_request_and_the_boost_of_items_that_are_met_twice(rank: Callable[..., Any]) -> None:
    # Two users each for items 1 and 2, one for 3, C = 2: s = 2 (2 - log 2) = 2.614 for 1 and 2, and 2 for 3.
    generator = fitted(restart=1.0, num_steps=100_000)
    assert generator._steps == pytest.approx([4 - 2 * math.log(2), 4 - 2 * math.log(2), 2])
    [scores], [items] = rank(generator, DATA, [0], [2], 3)
    # History 1, 2: half of the steps from each. V_1[1] = 3/8, V_2[1] = 1/8; V_1[2] = 1/8, V_2[2] = 1/4; V_2[3] = 1/8.
    assert items == [1, 2, 3]
    first, second = ((3 / 8) ** 0.5 + (1 / 8) ** 0.5) ** 2, ((1 / 8) ** 0.5 + (1 / 4) ** 0.5) ** 2
    assert scores == pytest.approx([first, second, 1 / 8], abs=0.01)
    # History 2, 3: their shares of the steps are 2.614 and 2 of 4.614; 1 is met from 2 alone.
    [scores], [items] = rank(generator, DATA, [1], [5], 3)
    share = (4 - 2 * math.log(2)) / (6 - 2 * math.log(2))
    expected = {
        1: share / 4,
        2: ((share / 2) ** 0.5 + ((1 - share) / 2) ** 0.5) ** 2,
        3: ((share / 4) ** 0.5 + ((1 - share) / 2) ** 0.5) ** 2,
    }
    assert items == [2, 3, 1]
    assert scores == pytest.approx([expected[item] for item in items], abs=0.01)


def test_scores_are_those_of_the_algorithm(rank: Callable[..., Any]) -> None:
    dataset = handmade(random_users(np.random.default_rng(1), 80, 30))
    generator = fitted(dataset, "val", num_steps=300)
    visits, degrees = frequencies(generator), generator._events.users.toarray().sum(0)
    requests = dataset.requests("test")
    users, ends = requests.user_idx.tolist(), requests.end.tolist()
    scores, items = rank(generator, dataset, users, ends, visits.shape[1])
    num_walked = 0
    for row, (user, end) in enumerate(zip(users, ends, strict=True)):
        begin = dataset.offsets[user]
        history = sorted({*dataset.item_idx[begin:end].tolist()} & {*range(1, visits.shape[1] + 1)})
        scale = [degrees[q - 1] * (degrees.max() - math.log(degrees[q - 1])) for q in history]
        for score, item in zip(scores[row], items[row], strict=True):
            parts = [s / sum(scale) * visits[q - 1, item - 1] for q, s in zip(history, scale, strict=True)]
            boosted = sum(math.sqrt(part) for part in parts) ** 2
            if boosted:
                assert score == pytest.approx(boosted, rel=1e-4)
                num_walked += 1
            else:
                assert score == generator._fallback[item - 1] < 0
    assert num_walked > 100


def test_recent_items_alone(rank: Callable[..., Any]) -> None:
    # Items 1, 2 and 3 lead to 5, 6 and 7 alone; 4, of the validation part, is unknown but one of the recent events.
    data = handmade([([1, 2, 3], [8], [1]), ([1, 4], [], []), ([2, 5], [], []), ([3, 6], [], []), ([7], [], [])])
    generator = fitted(data, num_recent=2, num_steps=2000, restart=1.0)

    def reached(end: int) -> set[int]:
        [scores], [items] = rank(generator, data, [0], [end], 7)
        return {item for item, score in zip(items, scores, strict=True) if score > 0}

    # User 0 leads from each of its items to all of them.
    assert reached(1) == {1, 2, 3, 4}
    assert reached(2) == {1, 2, 3, 4, 5}
    assert reached(3) == {1, 2, 3, 5, 6}
    assert reached(4) == {1, 2, 3, 6}


def test_recent_items_need_an_order() -> None:
    dataset = handmade([([1, 2], [], [])], time_resolution="none")
    fitted(dataset)
    with pytest.raises(UserError, match="generator.num_recent=3: data.time=none has no recent events"):
        fitted(dataset, num_recent=3)


def test_is_seeded() -> None:
    dataset = handmade(random_users(np.random.default_rng(0), 60, 20))
    first, again, other = (frequencies(fitted(dataset, seed=seed, num_steps=100)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_blocks_and_neighbours_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = handmade(random_users(np.random.default_rng(0), 60, 20))
    whole = fitted(dataset, num_steps=100_000)
    heights = []
    walk = random_walk._walk

    def counted(starts: Any, *rest: Any, **settings: Any) -> Any:
        heights.append(len(starts))
        return walk(starts, *rest, **settings)

    monkeypatch.setattr(random_walk, "_walk", counted)
    monkeypatch.setattr(random_walk, "NUM_ENTRIES", 300_000)
    blocked = fitted(dataset, num_steps=100_000, num_neighbours=4)
    # Each takes just below or above 100,000 steps.
    assert max(heights) <= 3
    assert sum(heights) == blocked._events.num_items
    assert (frequencies(blocked) > 0).sum(1).max() == 4
    # The four most visited of each item are the same, up to ties within chance.
    kept = frequencies(blocked)
    np.testing.assert_allclose(kept[kept > 0], frequencies(whole)[kept > 0], atol=0.01)
    best = np.sort(frequencies(whole), axis=1)[:, -4:].sum(1)
    np.testing.assert_allclose(kept.sum(1), best, atol=0.01)


def test_without_an_edge_to_walk_popularity_ranks(rank: Callable[..., Any]) -> None:
    # User 2's item leads to 2 and, beyond, to 3: with single steps 3 stays unvisited and comes last, below zero.
    [scores], [items] = rank(fitted(restart=1.0), DATA, [2], [6], 3, ragged([1]))
    assert items == [2, 3, 0]
    assert scores[0] > 0 > scores[1]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("restart", 0, "a probability above 0"),
        ("restart", 1.5, "a probability above 0"),
        ("num_steps", 0, "at least 1"),
        ("num_recent", 0, "at least 1"),
        ("num_neighbours", 0, "at least 1"),
    ],
)
def test_refuses(name: str, value: float, expected: str) -> None:
    with pytest.raises(UserError, match=f"generator.{name}={value}: expected {expected}"):
        RandomWalk(**{name: value})  # type: ignore[arg-type]
