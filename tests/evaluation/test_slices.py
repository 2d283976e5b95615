"""Slices by popularity, with the shares worked out."""

from __future__ import annotations

from handmade import handmade

from recsys.evaluation.slices import ITEM_SLICES, cold_users, item_slices


def names(users: list[tuple[list[int], list[int], list[int]]]) -> list[str]:
    return [ITEM_SLICES[number] for number in item_slices(handmade(users))]


def test_bounds() -> None:
    # Ten training events: 1 makes .4, 2 the share .4-.6 (it begins below .5: head), 3 .6-.7, 4 .7-.8 (mid),
    # 5 .8-.9 and 6 .9-1 (tail: 5 begins exactly at .8). 7 is seen in validation only, 8 in the test part only.
    train = [1, 1, 1, 1, 2, 2, 3, 4, 5, 6]
    assert names([(train, [7], [8])]) == [
        "cold_items",
        "head",
        "head",
        "mid",
        "mid",
        "tail",
        "tail",
        "cold_items",
        "cold_items",
    ]


def test_one_item_is_head() -> None:
    assert names([([1], [], [])]) == ["cold_items", "head"]


def test_without_training_events_all_is_cold() -> None:
    assert names([([], [1], [2])]) == ["cold_items"] * 3


def test_cold_users() -> None:
    assert cold_users(handmade([([1], [], []), ([], [1], [1]), ([], [], [])])).tolist() == [False, True, True]
