"""Slices of items and users, with the shares worked out."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from handmade import DAY, handmade, ragged

from recsys.core.columns import Dense
from recsys.core.schema import Feature, Schema
from recsys.data.dataset import NO_BIRTH
from recsys.evaluation.slices import ITEM_SLICES, cold_users, item_slices, item_tables, user_tables


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


def test_ages_when_the_part_begins() -> None:
    data = handmade([([1, 2, 3, 4, 5, 6, 7], [], [1])], num_known=8)
    data = dataclasses.replace(data, time=np.array([0, 0, 0, 0, 0, 0, 0, 100 * DAY]))
    days = [0, 100, 99.5, 99, 93, 70, 10, 100.5, math.nan]
    data = dataclasses.replace(data, born=np.array([NO_BIRTH if math.isnan(d) else int(d * DAY) for d in days]))
    table = item_tables(data, "test")[1]
    assert [(*table.names, "none")[place] for place in table.of[1:]] == [
        "age_0_to_1_days",
        "age_0_to_1_days",
        "age_1_to_7_days",
        "age_7_to_30_days",
        "age_30_to_90_days",
        "age_over_90_days",
        "born_later",
        "none",
    ]


@pytest.mark.parametrize("fault", ["no births", "no clock", "no part", "all null"])
def test_no_ages(fault: str) -> None:
    data = handmade([([1, 2], [], [1])], "order" if fault == "no clock" else "seconds")
    births = None if fault == "no births" else np.full(3, NO_BIRTH if fault == "all null" else 0)
    data = dataclasses.replace(data, born=births)
    assert len(item_tables(data, "val" if fault == "no part" else "test")) == 1


def test_profiles_of_new_users() -> None:
    data = handmade([([1], [], [1]), ([], [], [1]), ([], [], [1]), ([], [], [1]), ([], [], [1])])
    assert len(user_tables(data)) == 1
    features = {
        Feature("age", "users", "numeric", "profile", 1): Dense(np.array([1, np.nan, 2, np.nan, np.nan], np.float32)),
        Feature("kind", "users", "categorical", "profile", 4): Dense(np.array([2, 0, 0, 0, 3], np.int32)),
        Feature("likes", "users", "multi_categorical", "profile", 4): ragged([2], [], [], [2], []),
        Feature("face", "users", "vector", "profile", 2): Dense(np.full((5, 2), np.nan, np.float32)),
    }
    data = dataclasses.replace(
        data, schema=Schema(tuple(features)), columns={feature.key: column for feature, column in features.items()}
    )
    table = user_tables(data)[1]
    assert [(*table.names, "warm")[place] for place in table.of] == [
        "warm",
        "cold_users_without_profile",
        "cold_users_with_profile",
        "cold_users_with_profile",
        "cold_users_with_profile",
    ]
