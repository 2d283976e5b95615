"""EASE against its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from handmade import handmade, ragged, random_users

from recsys.baselines import ease, interactions
from recsys.baselines.ease import EASE
from recsys.baselines.interactions import Interactions
from recsys.core.errors import UserError


def test_two_items_by_hand(rank: Callable[..., Any]) -> None:
    # G = [[3, 2], [2, 2]], l2 = 1: P = 1/8 [[3, -2], [-2, 4]]; B_12 = -P_12 / P_22 = 1/2, B_21 = -P_21 / P_11 = 2/3.
    dataset = handmade([([1, 2], [], [1]), ([1, 2, 2], [], []), ([1], [], [])])
    generator = EASE(l2=1)
    generator.fit(Interactions(dataset, "train"))
    scores, items = rank(generator, dataset, [2, 0], [7, 2], 1, ragged([1], [1]))
    assert items == [[2], [2]]
    assert scores == [[pytest.approx(1 / 2)], [pytest.approx(1 / 2)]]
    np.testing.assert_allclose(generator._weights, [[0, 1 / 2], [2 / 3, 0]], rtol=1e-6)


def test_equals_the_definition(rank: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "_ROWS", 16)  # the triangles are mirrored sixteen rows at a time
    monkeypatch.setattr(interactions, "NUM_ENTRIES", 200)  # and pairs are counted for three items at a time
    dataset = handmade(random_users(np.random.default_rng(0), 300, 60))
    generator = EASE(l2=5)
    events = Interactions(dataset, "val")
    # Other settings for the same events share the counts, and leave them as they are.
    EASE(l2=100).fit(events)
    generator.fit(events)
    users = generator._events.users.toarray().astype(float)
    inverse = np.linalg.inv(users.T @ users + 5 * np.eye(users.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    np.testing.assert_allclose(generator._weights, weights, atol=1e-5)
    requests = dataset.requests("test")
    history = generator._events.histories(requests).toarray()
    expected = np.where(history.any(1, keepdims=True), history @ weights, generator._fallback)
    scores, items = rank(generator, dataset, requests.user_idx.tolist(), requests.end.tolist(), 20)
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :20], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(expected, np.array(items) - 1, 1), scores, atol=1e-5)


def test_refuses_more_items_than_fit() -> None:
    # Two matrices of 1000 x 1000 numbers of four bytes: 8 MB, before any is made.
    events = Interactions(handmade([([*range(1, 1001)], [], [])]), "train")
    with pytest.raises(UserError, match="1000 items need 0.008 GB .* at most generator.max_gigabytes=0.0079; use "):
        EASE(max_gigabytes=0.0079).fit(events)
    assert "pairs" not in vars(events)
    EASE(max_gigabytes=0.0081).fit(events)


def test_refuses() -> None:
    with pytest.raises(UserError, match="generator.max_gigabytes=-1: expected a positive number"):
        EASE(max_gigabytes=-1)
    with pytest.raises(UserError, match="generator.l2=0: expected a positive number"):
        EASE(l2=0)
