"""Items and users with an id embedding of their own, if there are more of them than rows of the table."""

from __future__ import annotations

import pytest
from handmade import training_only
from worlds import compose

from recsys.core.errors import UnsuitableDataError, UserError
from recsys.core.instantiate import instantiate
from recsys.data.dataset import PreparedDataset
from recsys.models.admission import Admission

DAY = 86_400


@pytest.fixture(scope="module")
def dataset() -> PreparedDataset:
    # Item 1: days 0, 1, 2; item 2: days 3, 9; item 3: days 8, 10; item 4: day 10; item 5: day 1.
    histories = [[(1, 0), (1, 1), (2, 3), (2, 9), (4, 10)], [(5, 1), (1, 2), (3, 8), (3, 10)]]
    return training_only([[(item, day * DAY) for item, day in history] for history in histories])


@pytest.mark.parametrize(
    ("admission", "expected"),
    [
        (Admission(5), {1, 2, 3, 4, 5}),
        (Admission(9), {1, 2, 3, 4, 5}),
        # The most frequent ones; of equal ones those with the newest event.
        (Admission(1), {1}),
        (Admission(2), {1, 3}),
        (Admission(4), {1, 2, 3, 4}),
        (Admission(5, min_events=2), {1, 2, 3}),
        # Item 1 is too old, and so is item 5.
        (Admission(5, window_days=7.5), {2, 3, 4}),
        (Admission(5, min_events=2, window_days=3), {3}),
    ],
)
def test_admission_by_count_and_eviction_by_age(
    dataset: PreparedDataset, admission: Admission, expected: set[int]
) -> None:
    rows = admission.rows(dataset, "items")
    assert len(rows) == 6
    assert rows[0] == 0
    assert {item for item in range(6) if rows[item]} == expected
    assert sorted(rows[rows > 0].tolist()) == [*range(1, len(expected) + 1)]


@pytest.mark.parametrize(
    ("admission", "expected"),
    [
        (Admission(5), [1, 2, 3, 0]),
        # The most active one; of equal ones that with the newest event.
        (Admission(1), [1, 0, 0, 0]),
        (Admission(2), [1, 2, 0, 0]),
        (Admission(5, min_events=2), [1, 2, 0, 0]),
        # The third one is too old, and the first one has two events of this age, the second one three.
        (Admission(5, window_days=7.5), [1, 2, 0, 0]),
        (Admission(1, window_days=8.5), [0, 1, 0, 0]),
    ],
)
def test_users_are_admitted_by_the_same_rules(admission: Admission, expected: list[int]) -> None:
    histories = [[(1, 0), (1, 1), (2, 2), (4, 9)], [(5, 3), (1, 8), (3, 10)], [(2, 1)], []]
    data = training_only([[(item, day * DAY) for item, day in history] for history in histories])
    assert admission.rows(data, "users").tolist() == expected


@pytest.mark.parametrize("tower", ["item_tower", "user_tower"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capacity": 0}, "capacity: found 0"),
        ({"capacity": 2, "min_events": 0}, "min_events: found 0"),
        ({"capacity": 2, "window_days": 0.0}, r"window_days: found 0\.0"),
        ({"min_events": 2}, "capacity: found null"),
    ],
)
def test_what_does_not_fit_is_refused(tower: str, settings: dict[str, float], message: str) -> None:
    config = compose("train", [f"{tower}.admission.{name}={value}" for name, value in settings.items()])
    # The message names the key, also if the admission is made as a part of the tower.
    for node in (config[tower].admission, config[tower]):
        with pytest.raises(UserError, match=rf"^{tower}\.admission\.{message}"):
            instantiate(node)


def test_days_need_a_clock() -> None:
    ordered = training_only([[(1, 0), (2, 1)]], "order")
    assert Admission(1).rows(ordered, "items").tolist() == [0, 0, 1]
    with pytest.raises(UnsuitableDataError, match="^item_tower.admission.window_days with data.time=order"):
        Admission(1, window_days=3).rows(ordered, "items")
    with pytest.raises(UnsuitableDataError, match="^user_tower.admission.window_days with data.time=order"):
        Admission(1, window_days=3).rows(ordered, "users")
