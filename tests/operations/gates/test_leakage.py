"""Gates on the border between training and test data, on data sets written by hand."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from handmade import handmade

from recsys.data.dataset import PreparedDataset
from recsys.operations.gates.event_window import DAY, EventWindow
from recsys.operations.gates.leakage import NotRepeated, TrainedBefore


def with_times(data: PreparedDataset, times: list[int]) -> PreparedDataset:
    return dataclasses.replace(data, time=np.array(times) * DAY)


def judged(gate: Any, data: PreparedDataset, candidate: dict[str, int], served: dict[str, int]) -> list[Any]:
    def side(times: dict[str, int], fingerprint: str) -> Any:
        manifest = SimpleNamespace(data=times, dataset_fingerprint=fingerprint)
        return SimpleNamespace(retriever=SimpleNamespace(manifest=manifest))

    given = SimpleNamespace(window=EventWindow(data), candidate=side(candidate, ""), served=side(served, "older"))
    return list(gate.judge(given))


# Two users; training on days 0 to 3, validation on 4, test from day 5 on.
USERS = handmade([([1, 2], [3], [1]), ([2, 1], [2], [3, 1])])
TIMES = [0, 2, 4, 5, 1, 3, 4, 6, 7]


@pytest.mark.parametrize(("until", "expected"), [(3, "pass"), (5, "pass"), (6, "fail")])
def test_training_ends_where_the_window_begins(until: int, expected: str) -> None:
    data = with_times(USERS, TIMES)
    outcomes = judged(TrainedBefore(max_overlap_days=0), data, {"train_until": until * DAY}, {"train_until": 2 * DAY})
    assert [row.status for row in outcomes] == [expected, "pass"]
    assert outcomes[0].value == until - 5
    later = judged(TrainedBefore(max_overlap_days=0), data, {"train_until": 3 * DAY}, {"train_until": until * DAY})
    assert later[1].status == expected


def test_a_split_by_user_has_a_border_for_each_user() -> None:
    # The second user's training is later than the first one's test.
    data = with_times(USERS, [0, 1, 2, 3, 4, 5, 6, 7, 8])
    outcomes = judged(TrainedBefore(max_overlap_days=0), data, {"train_until": 5 * DAY}, {"train_until": 5 * DAY})
    assert [row.status for row in outcomes] == ["pass", "untested"]
    # Now one of three test events lies before a training event of its user.
    data = with_times(USERS, [0, 9, 2, 3, 4, 5, 6, 7, 8])
    outcome = judged(TrainedBefore(max_overlap_days=0), data, {"train_until": 9 * DAY}, {})[0]
    assert outcome.status == "fail"
    assert outcome.value == pytest.approx(1 / 3)


def test_releases_without_times_are_untested() -> None:
    outcomes = judged(TrainedBefore(max_overlap_days=0), with_times(USERS, TIMES), {}, {})
    assert [row.status for row in outcomes] == ["untested", "untested"]


def test_repeats_are_counted_beside_those_of_the_part_before() -> None:
    # Test: item 1 of the first user and 1 of the second are repeats, item 3 is none. Validation: 3 is none, 2 is one.
    (outcome,) = judged(NotRepeated(max_increase=0.1), with_times(USERS, TIMES), {}, {})
    assert outcome.value == pytest.approx(2 / 3)
    assert outcome.threshold == pytest.approx(1 / 2 + 0.1)
    assert outcome.status == "fail"
    (outcome,) = judged(NotRepeated(max_increase=0.2), with_times(USERS, TIMES), {}, {})
    assert outcome.status == "pass"
