"""What is asked, what counts as a hit, and who is in which group."""

from __future__ import annotations

import numpy as np
from handmade import handmade

from recsys.data.dataset import Requests
from recsys.reports.generators import segments as module
from recsys.reports.generators.lists import answerable, collect
from recsys.reports.generators.segments import segments

# Users: two events and two to find; nothing new in the test part; no history; no test part.
DATA = handmade([([1, 2], [3], [4, 1]), ([1], [2], [1]), ([], [], [5]), ([1, 2], [], [])])


def test_users_with_relevant_items() -> None:
    assert answerable(DATA, "test", exclude_seen=True, max_users=None, seed=0).user_idx.tolist() == [0, 2]
    assert answerable(DATA, "test", exclude_seen=False, max_users=None, seed=0).user_idx.tolist() == [0, 1, 2]
    assert answerable(DATA, "val", exclude_seen=True, max_users=None, seed=0).user_idx.tolist() == [0, 1]
    some = answerable(DATA, "test", exclude_seen=False, max_users=2, seed=0)
    assert len(some.user_idx) == 2
    assert {*some.user_idx} <= {0, 1, 2}


def test_hits_are_those_items_of_the_part_that_were_not_seen() -> None:
    def same_for_all(requests: Requests, k: int) -> np.ndarray:
        return np.tile([4, 1, 5, 0], (len(requests.user_idx), 1))[:, :k]

    requests = answerable(DATA, "test", exclude_seen=True, max_users=None, seed=0)
    lists = collect(
        {"same": same_for_all}, same_for_all, dataset=DATA, part="test", requests=requests, k=4, exclude_seen=True
    )
    assert lists.items.shape == (2, 2, 4)
    assert lists.num_relevant.tolist() == [1, 1]
    assert lists.hits[:, 0].tolist() == [[True, False, False, False], [False, False, True, False]]
    assert lists.take(np.array([1])).hits[0, 1].tolist() == [False, False, True, False]


def test_items_that_the_data_does_not_have_take_a_place_and_hit_nothing() -> None:
    # Item 5 + 1 + 5 of the first user would be item 5 of the second, who goes on to it.
    requests = answerable(DATA, "test", exclude_seen=True, max_users=None, seed=0)

    def lister(requests: Requests, k: int) -> np.ndarray:
        return np.full((len(requests.user_idx), k), DATA.num_items + 1 + 5)

    lists = collect({"other": lister}, lister, dataset=DATA, part="test", requests=requests, k=1, exclude_seen=True)
    assert not lists.hits.any()
    assert (lists.items > 0).all()


def test_groups(monkeypatch) -> None:
    monkeypatch.setattr(module, "MIN_USERS", 1)
    # Events are a day apart: the first test event is a day after the last of the history.
    requests = answerable(DATA, "test", exclude_seen=False, max_users=None, seed=0)
    found = {name: rows.tolist() for name, rows in segments(DATA, requests).items()}
    # Histories of 3, 2 and 0 events: the median of those that have one is 2 (of 2.5).
    assert found == {
        "new: no history": [False, False, True],
        "light: 1 to 2 events": [False, True, False],
        "heavy: over 2 events": [True, False, False],
        "back within a day": [True, True, False],
    }
    timeless = handmade([([1], [], [2]), ([1], [], [2])], time_resolution="order")
    assert [*segments(timeless, timeless.requests("test"))] == ["light: 1 to 1 events"]
    monkeypatch.setattr(module, "MIN_USERS", 3)
    assert segments(timeless, timeless.requests("test")) == {}
