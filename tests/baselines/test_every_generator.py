"""What every generator owes: an answer for everyone, nothing that was seen, nothing twice, on any data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import handmade, ragged, random_users

from recsys.baselines.als import ALS
from recsys.baselines.ease import EASE
from recsys.baselines.interactions import Generator, Interactions
from recsys.baselines.item_knn import ItemKNN
from recsys.baselines.popularity import Popularity
from recsys.baselines.random_walk import RandomWalk
from recsys.baselines.transitions import Transitions
from recsys.data.dataset import PreparedDataset, Requests
from recsys.evaluation.relevance import seen_items

GENERATORS: dict[str, Callable[[], Generator]] = {
    "popularity": Popularity,
    "item_knn": ItemKNN,
    "ease": lambda: EASE(l2=5),
    "als": lambda: ALS(factors=4, iterations=3),
    "random_walk": lambda: RandomWalk(num_steps=200),
    "transitions": Transitions,
}
# The first needs a clock, the second categories: they have tests of their own.
OTHERS = {"recent_popularity", "followed_interests"}
CONF = Path(__file__).parents[2] / "conf/generator"
every = pytest.mark.parametrize("name", GENERATORS)


def fitted(name: str, dataset: PreparedDataset, until: Any = "train") -> Generator:
    generator = GENERATORS[name]()
    generator.fit(Interactions(dataset, until))
    return generator


def test_these_are_all() -> None:
    assert {*GENERATORS} | OTHERS == {file.stem for file in CONF.glob("*.yaml")}


@every
def test_users_without_a_history_get_the_most_popular(name: str, rank: Callable[..., Any]) -> None:
    # Users 12 and 13: without events before the test part, with an item alone that training does not know.
    # Counts: 3 ten times, 1 seven, 4 six, 2 five, 5 once.
    popular = [[1, 2, 3, 4]] * 3 + [[2, 3], [3, 1], [4]] * 2 + [[1, 3]] * 2 + [[3, 4]]
    users = [*((items, [], []) for items in popular), ([], [], [1]), ([], [6], [2])]
    data = handmade([*users, ([5], [], [])])
    generator = fitted(name, data)
    who = [12, 13, -1], [*data.val_end[[12, 13]], 0]
    assert rank(generator, data, *who, 6)[1] == [[3, 1, 4, 2, 5, 0]] * 3
    assert rank(generator, data, *who, 3, ragged([3, 1], [6], [5]))[1] == [[4, 2, 5], [3, 1, 4], [3, 1, 4]]


@every
@pytest.mark.parametrize("time_resolution", ["seconds", "day", "order", "none"])
@pytest.mark.parametrize("until", ["train", "val"])
def test_lists_are_full_and_without_seen_items(
    name: str, time_resolution: str, until: str, rank: Callable[..., Any]
) -> None:
    dataset = handmade(random_users(np.random.default_rng(3), 60, 25), time_resolution=time_resolution)
    generator = fitted(name, dataset, until)
    known = {*range(1, (dataset.num_trained if until == "train" else dataset.meta.num_seen) + 1)}
    requests = dataset.requests("val" if until == "train" else "test")
    seen = seen_items(dataset, requests)
    scores, items = rank(generator, dataset, requests.user_idx.tolist(), requests.end.tolist(), 30, seen)
    for row in range(len(items)):
        gone = {*seen.values[seen.offsets[row] : seen.offsets[row + 1]].tolist()}
        shown = [item for item in items[row] if item]
        assert {*shown} == known - gone
        assert len(shown) == len({*shown})
        assert items[row] == shown + [0] * (30 - len(shown))
        assert scores[row] == sorted(scores[row], reverse=True)


@every
def test_one_user_with_everything(name: str, rank: Callable[..., Any]) -> None:
    num_items = 3000
    everything = [*range(1, num_items + 1)] * 3
    data = handmade([(everything, [], [1]), *(([n, n + 1], [], []) for n in range(1, 40, 2)), ([], [], [1])])
    generator = fitted(name, data)
    requests = Requests(np.array([0, 1, 21]), data.train_end[[0, 1, 21]])
    _, items = rank(generator, data, [0, 1, 21], requests.end.tolist(), 5, seen_items(data, requests))
    assert items[0] == [0] * 5
    assert len({*items[1]} - {0, 1, 2}) == 5
    assert items[2] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["item_knn", "ease", "als", "random_walk", "transitions"])
def test_without_filling_lists_end_after_the_scored_items(name: str, rank: Callable[..., Any]) -> None:
    # Nobody has items of both pairs; user 4 has no history.
    data = handmade([([1, 2], [], []), ([1, 2], [], []), ([3, 4], [], []), ([3, 4], [], []), ([], [], [1])])
    generator = GENERATORS[name]()
    generator.fit(Interactions(data, "train", fill=False))
    ends = [int(data.offsets[0]) + 1, int(data.val_end[4])]
    scores, items = rank(generator, data, [0, 4], ends, 3, ragged([1], []))
    assert items[0][0] == 2
    assert items[1] == [0, 0, 0]
    assert scores[1] == [-np.inf] * 3
    if name in ("item_knn", "random_walk", "transitions"):
        assert items[0] == [2, 0, 0]
