"""What counts as a hit, on users that are written out."""

from __future__ import annotations

import numpy as np
import pytest
from handmade import handmade

from recsys.core.columns import Ragged
from recsys.data.dataset import Requests
from recsys.evaluation import relevance
from recsys.evaluation.relevance import recent_items, relevant_items, rolling_requests, seen_items

# Repeats in the test part, repeats of the history, no history, no test part.
DATA = handmade([([1, 2, 1], [3], [2, 4, 4, 5]), ([], [], [1, 1]), ([1], [2], []), ([2], [], [2, 2])])


def lists(rows: Ragged) -> list[list[int]]:
    return [row.tolist() for row in np.split(rows.values, rows.offsets[1:-1])]


def test_seen_items_are_the_history_of_the_request() -> None:
    assert lists(seen_items(DATA, DATA.requests("test"))) == [[1, 2, 1, 3], [], [2]]
    assert lists(seen_items(DATA, DATA.requests("val"))) == [[1, 2, 1], [1]]


def test_items_of_long_histories_are_returned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = Requests(np.array([0, 3, 0, -1, 1, 0]), np.array([7, 14, 3, 0, 9, 4]))
    rolling = rolling_requests(DATA, "test")
    usual = lists(seen_items(DATA, requests))
    relevant = lists(relevant_items(DATA, "test", requests=rolling, rolling=True))
    monkeypatch.setattr(relevance, "LONG", 1)
    assert lists(seen_items(DATA, requests)) == [sorted({*row}) for row in usual]
    assert lists(seen_items(DATA, requests)) == [[1, 2, 3, 4], [2], [1, 2], [], [1], [1, 2, 3]]
    assert lists(relevant_items(DATA, "test", requests=rolling, rolling=True)) == relevant


def test_recent_items_are_the_last_events() -> None:
    requests = Requests(np.array([0, 3, -1, 1]), np.array([7, 14, 0, 8]))
    assert lists(recent_items(DATA, requests, 3)) == [[2, 4, 4], [2, 2], [], []]


def test_unknown_users_have_no_seen_items() -> None:
    assert lists(seen_items(DATA, Requests(np.array([-1, 0, -1]), np.array([0, 2, 0])))) == [[], [1, 2], []]


def test_relevant_items_are_distinct_and_new() -> None:
    requests = DATA.requests("test")
    assert requests.user_idx.tolist() == [0, 1, 3]
    assert lists(relevant_items(DATA, "test", requests=requests)) == [[4, 5], [1], []]
    assert lists(relevant_items(DATA, "val", requests=DATA.requests("val"))) == [[3], [2]]


def test_relevant_items_with_those_of_the_history() -> None:
    assert lists(relevant_items(DATA, "test", requests=DATA.requests("test"), exclude_seen=False)) == [
        [2, 4, 5],
        [1],
        [2],
    ]


def test_rolling_requests_ask_for_every_event() -> None:
    requests = rolling_requests(DATA, "test")
    assert requests.user_idx.tolist() == [0, 0, 0, 0, 1, 1, 3, 3]
    assert requests.end.tolist() == [4, 5, 6, 7, 8, 9, 13, 14]
    assert lists(relevant_items(DATA, "test", requests=requests, exclude_seen=False, rolling=True)) == [
        [2], [4], [4], [5], [1], [1], [2], [2],
    ]  # fmt: skip
    # The second 4 of the first user has been seen by then, as has everything that follows a first time.
    assert lists(relevant_items(DATA, "test", requests=requests, rolling=True)) == [[], [4], [], [5], [1], [], [], []]
