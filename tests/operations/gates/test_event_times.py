"""Gates on times and contents of events, on data sets written by hand."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from days import NUM_ITEMS, days_of_events, evidence, of_columns, status

from recsys.core.columns import Dense
from recsys.core.schema import Feature, Schema, TimeResolution
from recsys.data.dataset import PreparedDataset
from recsys.operations.gates.event_contents import ItemShift, LabelShift, Nulls, Unseen
from recsys.operations.gates.event_times import Clock, Duplicates, TimeGaps
from recsys.operations.gates.event_window import DAY, EventWindow
from recsys.operations.gates.verdict import Outcome


def test_gap_to_the_end_of_the_window_and_between_events() -> None:
    gate = TimeGaps(max_ratio=2.0, max_gap_days=60)
    data = days_of_events([95] + [100] * 10)
    assert status(gate.judge(evidence(data))) == ["pass"] * 3
    cut = data.time < 10 * DAY + DAY // 2
    # Noon to midnight without an event, a quarter of an hour being usual.
    late = dataclasses.replace(data, time=np.where(cut, data.time, 10 * DAY + DAY // 2))
    outcomes = list(gate.judge(evidence(late)))
    assert status(outcomes) == ["pass", "fail", "fail"]
    assert outcomes[1].value == pytest.approx(12, abs=0.3)
    # Half of a day of a hundred events.
    assert outcomes[2].value == pytest.approx(50, abs=1)
    month = dataclasses.replace(data, time=np.where(cut, data.time, data.time * 1000))
    assert status(gate.judge(evidence(month)))[0] == "fail"


@pytest.mark.parametrize(("until", "expected"), [(24, "pass"), (18, "fail")])
def test_a_missing_evening_fails_although_nights_are_as_long(until: int, expected: str) -> None:
    # Silent from midnight to eight, ten events an hour then: six hours more are no long gap, and many events.
    days, hours = np.meshgrid(np.arange(11), 8 + np.arange(160) / 10)
    time = np.sort((days * DAY + hours * 3600).astype(np.int64).ravel())
    time = time[(time < 10 * DAY) | (time < 10 * DAY + until * 3600)]
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 40, len(time)), rng.integers(1, NUM_ITEMS + 1, len(time))
    outcomes = list(TimeGaps(max_ratio=2.0, max_gap_days=60).judge(evidence(of_columns(user, item, time, 11))))
    assert status(outcomes) == ["pass", "pass", expected]
    if until == 18:
        assert outcomes[2].value == pytest.approx(60, abs=2)


def test_a_gap_that_is_known_passes() -> None:
    # The last day stops at noon.
    data = days_of_events([95] + [100] * 10)
    noon = 10 * DAY + DAY // 2
    cut = dataclasses.replace(data, time=np.where(data.time < noon, data.time, noon))
    known, another = (
        TimeGaps(max_ratio=2.0, max_gap_days=60, known_days=[day]) for day in ("1970-01-11", "1970-01-10")
    )
    assert status(known.judge(evidence(cut))) == ["pass"] * 3
    assert status(another.judge(evidence(cut))) == ["pass", "fail", "fail"]


def test_events_in_the_future_fail() -> None:
    data = days_of_events([95] + [100] * 10)
    gate = Clock(max_ahead_hours=1)
    assert status(gate.judge(evidence(data, now=11 * DAY))) == ["pass"]
    assert status(gate.judge(evidence(data, now=10 * DAY + DAY // 2))) == ["fail"]


def test_copies_and_one_busy_user() -> None:
    gate = Duplicates(max_increase=0.02, max_busiest_user_increase=0.1)
    data = days_of_events([95] + [100] * 10)
    assert status(gate.judge(evidence(data))) == ["pass", "pass"]
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 40, 1100), rng.integers(1, NUM_ITEMS + 1, 1100)
    time = np.arange(1100) * DAY // 100
    last = time >= 10 * DAY
    twice = np.concatenate([np.arange(1100), np.flatnonzero(last)[:10]])
    outcomes = list(gate.judge(evidence(of_columns(user[twice], item[twice], time[twice], 11))))
    assert status(outcomes) == ["fail", "pass"]
    assert outcomes[0].value == pytest.approx(10 / 110)
    busy = np.where(last & (rng.random(1100) < 0.4), 7, user)
    assert status(gate.judge(evidence(of_columns(busy, item, time, 11)))) == ["pass", "fail"]


def _with_action(data: PreparedDataset, new: list[float]) -> PreparedDataset:
    """An action of two values (codes 2 and 3, 0 for none), even before the last day, with shares `new` on it."""
    rng = np.random.default_rng(0)
    before, after = rng.choice([2, 3], len(data.time)), rng.choice([0, 2, 3], len(data.time), p=new)
    codes = np.where(data.time >= 10 * DAY, after, before)
    feature = Feature("action", "interactions", "categorical", "event", 4)
    columns = {"interactions.action": Dense(codes.astype(np.int32))}
    return dataclasses.replace(data, schema=Schema((feature,)), columns=columns)


def test_actions_shift_and_vanish() -> None:
    data = days_of_events([95] + [400] * 10)
    same, shifted = _with_action(data, [0, 0.5, 0.5]), _with_action(data, [0, 0.1, 0.9])
    gone = _with_action(data, [0.5, 0.25, 0.25])
    labels = LabelShift(max_distance=0.1)
    assert status(labels.judge(evidence(same))) == ["pass"]
    (outcome,) = labels.judge(evidence(shifted))
    assert outcome.status == "fail"
    assert outcome.value == pytest.approx(0.4, abs=0.05)
    # Among those that are there nothing shifts: that half are missing is for the other gate.
    assert status(labels.judge(evidence(gone))) == ["pass"]
    assert [_nulls(one).status for one in (same, gone)] == ["pass", "fail"]


def _nulls(data: PreparedDataset) -> Outcome:
    side = SimpleNamespace(
        retriever=SimpleNamespace(items=pa.table({"item_id": [1], "item_idx": [1]}), schema=data.schema)
    )
    given = SimpleNamespace(window=EventWindow(data), now=0, candidate=side, served=side)
    return next(iter(Nulls(max_increase=0.1).judge(given)))  # type: ignore[arg-type]


def test_columns_and_features_that_the_catalogue_lost() -> None:
    def side(price: list[float | None] | None, *names: str) -> Any:
        columns = {"item_id": [1, 2, 3, 4], "item_idx": [1, 2, 3, 4]} | ({} if price is None else {"price": price})
        features = tuple(Feature(name, "items", "numeric", "item", 1) for name in names)
        return SimpleNamespace(retriever=SimpleNamespace(items=pa.table(columns), schema=Schema(features)))

    def judged(ours: Any, theirs: Any) -> dict[str, str]:
        window = EventWindow(days_of_events([95] + [100] * 10))
        given = SimpleNamespace(window=window, candidate=ours, served=theirs)
        return {row.check: row.status for row in Nulls(max_increase=0.1).judge(given)}  # type: ignore[arg-type]

    whole, holes = side([1.0, 2.0, 3.0, 4.0], "price"), side([1.0, None, None, 4.0], "price")
    assert judged(whole, whole) == {"catalogue price": "pass", "features lost": "pass"}
    assert judged(holes, whole)["catalogue price"] == "fail"
    assert judged(whole, holes)["catalogue price"] == "pass"
    assert judged(side(None), whole) == {"catalogue price": "fail", "features lost": "fail"}


def test_new_user_ids_and_swapped_items() -> None:
    rng = np.random.default_rng(0)
    time = np.arange(2200) * DAY // 200
    user, item = rng.integers(0, 40, 2200), np.minimum(rng.geometric(0.5, 2200), NUM_ITEMS)
    last = time >= 10 * DAY
    unseen = Unseen(max_increase=0.1, max_ratio=2.0, min_new_users_ratio=0.25, min_usual_new_users=12)
    shift = ItemShift(
        max_distance_increase=0.15,
        num_popular_items=3,
        max_risen_increase=0.12,
        num_risen_items=1,
        max_vanished_increase=0.12,
        min_expected_items=4,
    )
    same = evidence(of_columns(user, item, time, 11))
    assert status(unseen.judge(same)) == ["pass", "pass", "untested"]
    assert status(shift.judge(same)) == ["pass", "pass", "pass"]
    other = evidence(of_columns(np.where(last, user + 40, user), item, time, 11))
    assert status(unseen.judge(other)) == ["pass", "fail", "untested"]
    swapped = evidence(of_columns(user, np.where(last, NUM_ITEMS + 1 - item, item), time, 11))
    assert status(shift.judge(swapped)) == ["fail", "fail", "pass"]
    # Three in ten events of the last day are of the item that had a sixteenth.
    rare = np.where(last & (rng.random(2200) < 0.3), NUM_ITEMS, item)
    outcomes = list(shift.judge(evidence(of_columns(user, rare, time, 11))))
    assert outcomes[1].status == "fail"
    assert outcomes[1].value == pytest.approx(0.3 * 15 / 16, abs=0.08)
    # The second of the items, which had a quarter of the events, has none on the last day.
    gone = of_columns(user[~(last & (item == 2))], item[~(last & (item == 2))], time[~(last & (item == 2))], 11)
    outcomes = list(shift.judge(evidence(gone)))
    assert outcomes[2].status == "fail"
    assert outcomes[2].value == pytest.approx(0.25, abs=0.05)
    # Of five items none is among ten that must have events.
    assert list(dataclasses.replace(shift, min_expected_items=10).judge(evidence(gone)))[2].status == "untested"


def test_days_without_new_users() -> None:
    # Each day brings 20 users with five events each; on the last day they come as those of the first.
    unseen = Unseen(max_increase=0.1, max_ratio=2.0, min_new_users_ratio=0.25, min_usual_new_users=12)
    time = np.arange(1100) * DAY // 100
    user, item = np.arange(1100) // 5, np.arange(1100) % NUM_ITEMS + 1
    outcomes = list(unseen.judge(evidence(of_columns(user, item, time, 11))))
    assert status(outcomes) == ["pass", "pass", "pass"]
    assert (outcomes[2].value, outcomes[2].threshold) == (20, 5)
    outcomes = list(unseen.judge(evidence(of_columns(user % 200, item, time, 11))))
    assert status(outcomes) == ["pass", "pass", "fail"]
    assert outcomes[2].value == 0


def test_without_times_the_parts_are_compared_and_the_rest_is_untested() -> None:
    data = days_of_events([95] + [100] * 10)
    data = dataclasses.replace(data, meta=dataclasses.replace(data.meta, time_resolution=TimeResolution.NONE))
    given = evidence(data)
    assert given.window.new.sum() == 100
    assert given.window.before.sum() == 100
    assert status(Clock(max_ahead_hours=1).judge(given)) == ["untested"]
    assert (
        status(Unseen(max_increase=0.1, max_ratio=2, min_new_users_ratio=0.25, min_usual_new_users=12).judge(given))
        == ["untested"] * 3
    )
    assert status(Duplicates(max_increase=0.02, max_busiest_user_increase=0.1).judge(given)) == ["untested", "pass"]
