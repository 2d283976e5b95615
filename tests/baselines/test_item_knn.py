"""Item neighbours against similarities that are worked out, and against dense algebra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from handmade import handmade, ragged, random_users

from recsys.baselines import interactions
from recsys.baselines.interactions import Interactions
from recsys.baselines.item_knn import ItemKNN
from recsys.core.errors import UserError
from recsys.evaluation import topk

# Users of item 1: 0, 1, 2; of item 2: 0, 1; of item 3: 2; of item 4: 3.
DATA = handmade([([1, 2, 2], [], [3]), ([1, 2], [], []), ([1, 3], [], []), ([4], [], []), ([], [], [1])])


def fitted(dataset: Any = DATA, **options: Any) -> ItemKNN:
    generator = ItemKNN(**options)
    generator.fit(Interactions(dataset, "val"))
    return generator


def test_cosine(rank: Callable[..., Any]) -> None:
    # From item 1: 2 shares two users, 2 / sqrt(3 * 2); 3 shares one, 1 / sqrt(3 * 1); 4 none: last, below 0.
    [scores], [items] = rank(fitted(), DATA, [0], [1], 3, ragged([1]))
    assert items == [2, 3, 4]
    assert scores[:2] == pytest.approx([2 / 6**0.5, 1 / 3**0.5])
    assert scores[2] < 0


def test_shrink(rank: Callable[..., Any]) -> None:
    [scores], [items] = rank(fitted(shrink=2), DATA, [0], [1], 2, ragged([1]))
    assert items == [2, 3]
    assert scores == pytest.approx([2 / (6**0.5 + 2), 1 / (3**0.5 + 2)])


def test_sums_over_the_distinct_history(rank: Callable[..., Any]) -> None:
    # The history 1, 2, 2: 2 from 1 and 1 from 2 (either way 2 / sqrt 6), 3 from 1 alone.
    [scores], [items] = rank(fitted(), DATA, [0], [3], 3)
    assert {*items[:2]} == {1, 2}
    assert items[2] == 3
    assert scores == pytest.approx([2 / 6**0.5, 2 / 6**0.5, 1 / 3**0.5])


def test_every_item_keeps_its_nearest(rank: Callable[..., Any]) -> None:
    # Item 1 keeps 2 and forgets 3, but 3 keeps 1: from item 3 nothing leads to 1, from item 1 something leads to 3.
    generator = fitted(num_neighbours=1)
    assert rank(generator, DATA, [2], [7], 2, ragged([1]))[1] == [[2, 3]]
    only_three = handmade([([3], [], []), ([1, 2], [], []), ([1], [], []), ([4], [], [])])
    generator._events.dataset = only_three
    [scores], _ = rank(generator, only_three, [0], [1], 1)
    assert scores[0] < 0


def test_no_known_item_gives_the_most_popular(rank: Callable[..., Any]) -> None:
    # Counts: 1 and 2 three times each (2 twice by one user), 3 and 4 once.
    _, items = rank(fitted(), DATA, [4, -1, 3], [9, 0, 9], 5, ragged([], [], [4]))
    assert items == [[1, 2, 3, 4, 0], [1, 2, 3, 4, 0], [1, 2, 3, 0, 0]]


def test_equals_dense_algebra(rank: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "BLOCK_BYTES", 0)  # sixteen requests a block
    monkeypatch.setattr(interactions, "NUM_ENTRIES", 100)  # two items a block
    dataset = handmade(random_users(np.random.default_rng(0), 300, 50))
    generator = fitted(dataset, num_neighbours=7, shrink=3)
    users = generator._events.users.toarray()
    sizes = users.sum(0)
    similarity = users.T @ users / (np.sqrt(np.outer(sizes, sizes)) + 3)
    np.fill_diagonal(similarity, 0)
    for row in similarity:
        # The seventh largest decides; lower columns win among equals.
        row[np.lexsort((np.arange(len(row)), -row))[7:]] = 0
    requests = dataset.requests("test")
    history = generator._events.histories(requests).toarray()
    expected = history @ similarity.T
    expected = np.where(expected > 0, expected, generator._fallback)
    scores, items = rank(generator, dataset, requests.user_idx.tolist(), requests.end.tolist(), 20)
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :20], rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(expected, np.array(items) - 1, 1), scores, rtol=1e-5)


def test_refuses() -> None:
    with pytest.raises(UserError, match="generator.num_neighbours=0: expected at least 1"):
        ItemKNN(num_neighbours=0)
    with pytest.raises(UserError, match="generator.shrink=-1: expected 0 or more"):
        ItemKNN(shrink=-1)
