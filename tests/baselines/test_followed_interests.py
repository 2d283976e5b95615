"""Followed interests by hand: shares of interests times shares of their items."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import handmade, ragged

from recsys.baselines.followed_interests import FollowedInterests
from recsys.baselines.interactions import Interactions
from recsys.core.columns import Dense
from recsys.core.errors import UserError
from recsys.core.schema import Feature, Schema
from recsys.data.dataset import PreparedDataset

X, Y = 2, 3


@pytest.fixture
def data(tmp_path: Path) -> PreparedDataset:
    """Events: 1 three times, 2 twice, 3 and 4 once. Items 1 and 3 are of x, 2 of y, 4 of both; user 3 follows y."""
    plain = handmade([([1, 2, 3], [], []), ([1, 2], [], []), ([1, 4], [], []), ([], [], [1])], path=tmp_path)
    schema = Schema(
        (
            Feature("topics", "items", "multi_categorical", "item", 4),
            Feature("likes", "users", "categorical", "profile", 3),
        )
    )
    (tmp_path / "vocabularies").mkdir()
    pq.write_table(pa.table({"value": ["x", "y"]}), tmp_path / "vocabularies/items.topics.parquet")
    pq.write_table(pa.table({"value": ["y"]}), tmp_path / "vocabularies/users.likes.parquet")
    topics, likes = ragged([], [X], [Y], [X], [X, Y]), Dense(np.array([0, 1, 0, 2], np.int32))
    return dataclasses.replace(plain, schema=schema, columns={"items.topics": topics, "users.likes": likes})


def fitted(data: PreparedDataset, fill: bool = True, **settings: Any) -> FollowedInterests:
    generator = FollowedInterests(**settings)
    generator.fit(Interactions(data, "train", fill=fill))
    return generator


def test_interests_of_history_and_profile(data: PreparedDataset, rank: Any) -> None:
    # Events of x: 3 of item 1, 1 of item 3, half a one of item 4 (4.5 in all); of y: 2 of item 2, half of item 4 (2.5).
    scores, items = rank(fitted(data), data, [0, 3], [3, int(data.val_end[3])], 4)
    # User 0 had 1, 2, 3: two thirds x, a third y.
    expected = {1: 2 / 3 * 3 / 4.5, 2: 1 / 3 * 2 / 2.5, 3: 2 / 3 * 1 / 4.5, 4: 2 / 3 * 0.5 / 4.5 + 1 / 3 * 0.5 / 2.5}
    assert items[0] == [1, 2, 3, 4] == sorted(expected, key=lambda item: -expected[item])
    assert scores[0] == pytest.approx([expected[item] for item in items[0]])
    # User 3 has no history but follows y; then come the others by popularity.
    assert items[1] == [2, 4, 1, 3]
    assert scores[1][:2] == pytest.approx([0.8, 0.2])


def test_without_filling_lists_end_with_the_interests(data: PreparedDataset, rank: Any) -> None:
    ends = [int(data.val_end[3]), 0]
    assert rank(fitted(data, fill=False), data, [3, -1], ends, 3)[1] == [[2, 4, 0], [0, 0, 0]]


def test_the_strongest_interests_alone(data: PreparedDataset, rank: Any) -> None:
    assert rank(fitted(data, False, num_interests=1), data, [0], [3], 4)[1] == [[1, 3, 4, 0]]


def test_wrong_columns(data: PreparedDataset) -> None:
    with pytest.raises(UserError, match="generator.interest=topic: no column of items.*did you mean 'topics'"):
        fitted(data, interest="topic")
    with pytest.raises(UserError, match="generator.profile=like: no column of users.*did you mean 'likes'"):
        fitted(data, profile="like")
    with pytest.raises(UserError, match="no column of items is a category"):
        fitted(handmade([([1], [], [])]))
    with pytest.raises(UserError, match="num_interests=0: expected at least 1"):
        FollowedInterests(num_interests=0)
