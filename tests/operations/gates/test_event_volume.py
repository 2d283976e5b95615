"""Gates on the number of events, in total and for each user, on data sets written by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from days import NUM_ITEMS, days_of_events, evidence, of_columns, status

from recsys.core.errors import UserError
from recsys.core.schema import TimeResolution
from recsys.data.dataset import PreparedDataset
from recsys.operations.gates.event_times import TimeGaps
from recsys.operations.gates.event_volume import Activity, Volume
from recsys.operations.gates.event_window import DAY, EventWindow

VOLUME = Volume(min_ratio=0.6, max_ratio=1.67, max_deviations=3, min_reference_days=3)


@pytest.mark.parametrize(
    ("last", "expected"), [(100, ["pass", "pass"]), (50, ["fail", "pass"]), (200, ["pass", "fail"]), (65, ["pass"] * 2)]
)
def test_volume_of_the_last_day(last: int, expected: list[str]) -> None:
    # Ten days of 100 events; day 0 has those that make every item trained.
    outcomes = list(VOLUME.judge(evidence(days_of_events([95] + [100] * 9 + [last]))))
    assert status(outcomes) == expected
    assert outcomes[0].value == pytest.approx(last / 100)
    assert (outcomes[0].threshold, outcomes[1].threshold) == (0.6, 1.67)


def test_volume_that_scatters_by_itself_has_wide_bounds() -> None:
    counts = [95, 50, 200, 50, 200, 100, 50, 200, 50, 200]
    assert status(VOLUME.judge(evidence(days_of_events([*counts, 40])))) == ["pass", "pass"]
    # The median deviation is that from 100 to 50 or 200: three times 1.48 of it is a factor of 22.
    assert status(VOLUME.judge(evidence(days_of_events([*counts, 4])))) == ["fail", "pass"]


def test_a_missing_day_has_no_events_and_a_short_reference_is_untested() -> None:
    data = days_of_events([95] + [100] * 9 + [100])
    outcomes = list(VOLUME.judge(evidence(data, end=12 * DAY)))
    assert outcomes[0].status == "fail"
    assert outcomes[0].value == 0
    assert status(VOLUME.judge(evidence(days_of_events([95, 100, 100])))) == ["untested", "untested"]


def test_a_known_day_is_neither_judged_nor_reference() -> None:
    known = {"known_days": ["1970-01-11"]}
    small = days_of_events([95] + [100] * 9 + [30])
    assert status(VOLUME.judge(evidence(small))) == ["fail", "pass"]
    assert status(dataclasses.replace(VOLUME, **known).judge(evidence(small))) == ["untested"] * 2
    # As reference: three days of four are doubled; without them the last is like the one that is left.
    doubled = days_of_events([200 - 5, 200, 200, 100, 100, 100, 100])
    before = ["1970-01-01", "1970-01-02", "1970-01-03"]
    assert list(VOLUME.judge(evidence(doubled)))[0].value == pytest.approx(100 / 150)
    assert list(dataclasses.replace(VOLUME, known_days=before).judge(evidence(doubled)))[0].value == pytest.approx(1)


@pytest.mark.parametrize("gate", ["volume", "activity", "gaps"])
def test_known_days_must_be_dates(gate: str) -> None:
    sound = {"volume": VOLUME, "activity": ACTIVITY, "gaps": TimeGaps(max_ratio=2.0, max_gap_days=60)}[gate]
    with pytest.raises(UserError, match=f"gates.{gate}.known_days: found .'yesterday'., expected days such as"):
        dataclasses.replace(sound, known_days=["yesterday"])


def visits(per_user: list[int], users: list[int]) -> PreparedDataset:
    """On day d `users[d]` users come, and each has `per_user[d]` events."""
    time, user = [], []
    for day, (each, come) in enumerate(zip(per_user, users, strict=True)):
        time += [day * DAY + 60 * number for number in range(each * come)]
        user += [number // each for number in range(each * come)]
    items = np.arange(len(time)) % NUM_ITEMS + 1
    return of_columns(np.array(user), items, np.array(time), len(users))


ACTIVITY = Activity(max_ratio=1.3, max_deviations=5, min_reference_days=3, min_users=20)


@pytest.mark.parametrize(("last", "expected"), [(4, "pass pass"), (2, "fail pass"), (3, "fail pass"), (6, "pass fail")])
def test_events_per_user_do_not_depend_on_the_number_of_users(last: int, expected: str) -> None:
    # Days of 30 to 90 users, of whom each does four things. Day 0 has those that make every item trained.
    outcomes = list(ACTIVITY.judge(evidence(visits([4] * 6 + [last], [30, 90, 60, 30, 90, 60, 80]))))
    assert status(outcomes) == expected.split()
    assert outcomes[0].value == pytest.approx(last / 4)
    assert outcomes[1].threshold == pytest.approx(1.3)


def test_days_of_few_users_are_neither_judged_nor_reference() -> None:
    alone = visits([4] * 6 + [2], [30] * 6 + [19])
    assert status(ACTIVITY.judge(evidence(alone))) == ["untested"] * 2
    little = visits([4, 4, 4, 4, 4], [10, 10, 30, 30, 30])
    assert status(ACTIVITY.judge(evidence(little))) == ["untested"] * 2
    # The day of ten users is no reference for the others.
    (least, _) = ACTIVITY.judge(evidence(visits([4, 1, 1, 1, 4, 4, 4, 4], [30, 10, 10, 10, 30, 30, 30, 30])))
    assert (least.status, least.value) == ("pass", 1.0)


def test_activity_that_scatters_by_itself_has_wide_bounds() -> None:
    # 1.48 times the median deviation is a factor of 1.8 to the fifth power.
    assert status(ACTIVITY.judge(evidence(visits([4, 6, 4, 6, 4, 6, 4, 6, 2], [30] * 9)))) == ["pass", "pass"]


@pytest.mark.parametrize("gate", [VOLUME, ACTIVITY])
def test_without_times_the_gates_are_untested(gate: Volume | Activity) -> None:
    data = days_of_events([95] + [100] * 10)
    data = dataclasses.replace(data, meta=dataclasses.replace(data.meta, time_resolution=TimeResolution.NONE))
    assert status(gate.judge(evidence(data))) == ["untested", "untested"]


def test_growth_is_usual_where_the_window_is_long() -> None:
    # A release that has not been replaced for 15 days, over which twice as many events came little by little.
    counts = [95] + [100] * 9 + [100 + 7 * day for day in range(15)]
    growing = evidence(days_of_events(counts))
    growing.window = EventWindow(growing.window.dataset, begin=10 * DAY)
    outcomes = list(VOLUME.judge(growing))
    assert status(outcomes) == ["pass", "pass"]
    # The ninth new day, beside the median of the two weeks before it: of six old days and 100, 107, ... 149.
    assert outcomes[1].value == pytest.approx(156 / 103.5)
    at_a_stroke = evidence(days_of_events([95] + [100] * 9 + [100, 100, 200] + [200] * 12))
    at_a_stroke.window = EventWindow(at_a_stroke.window.dataset, begin=10 * DAY)
    outcomes = list(VOLUME.judge(at_a_stroke))
    assert status(outcomes) == ["pass", "fail"]
    assert outcomes[1].reason.startswith("1970-01-13, relative")


def test_weekends_are_usual_and_a_weekday_like_one_is_not() -> None:
    # From Thursday on: two days of seven have a third of the events.
    week = [90, 90, 30, 30, 90, 90, 90]
    weeks = [85, *week[1:], *week, *week]
    assert status(VOLUME.judge(evidence(days_of_events([*weeks, 90, 90, 30])))) == ["pass", "pass"]
    outcomes = list(VOLUME.judge(evidence(days_of_events([*weeks, 90, 30]))))
    assert status(outcomes) == ["fail", "pass"]
    assert outcomes[0].value == pytest.approx(1 / 3)
    # A weekend that is cut off is cut off, whatever it is compared with.
    assert status(VOLUME.judge(evidence(days_of_events([*weeks, 90, 90, 15])))) == ["fail", "pass"]
