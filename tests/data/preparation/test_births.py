"""Births of items in every form that files have."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from folders import EVENTS, prepared, write_folder

from recsys.core.errors import UserError
from recsys.core.schema import TimeResolution
from recsys.data.dataset import NO_BIRTH

DAY = 86_400
# 2024-03-01 and two days later.
FIRST, LAST = 1_709_251_200, 1_709_251_200 + 2 * DAY


def births(tmp_path: Path, values: Any, **settings: Any) -> dict[int, int | None]:
    items = {"item_id": [10, 11, 12, 99], "made": values}
    # The events are of 2033, after every birth.
    later = 2 * 10**9 * (1000 if settings.get("time_unit") == "ms" else 1)
    events = EVENTS if "time" in settings else {**EVENTS, "timestamp": [t + later for t in EVENTS["timestamp"]]}
    root = write_folder(tmp_path / "data", events, items)
    dataset = prepared(root, columns={"born": "made"}, **settings)
    assert dataset.born is not None
    assert not dataset.schema.owned_by("items")
    assert dataset.born[0] == NO_BIRTH
    ids = dataset.item_ids.to_pylist()
    return {i: None if (b := int(dataset.born[at])) == NO_BIRTH else b for at, i in enumerate(ids, 1)}


@pytest.mark.parametrize(
    ("values", "settings"),
    [
        ([FIRST, None, None, LAST], {}),
        ([FIRST + 0.5, None, None, LAST], {}),
        ([FIRST * 1000 + 5, None, None, LAST * 1000], {"time_unit": "ms"}),
        ([FIRST * 1000.0, None, None, LAST * 1000.0], {"time_unit": "ms"}),
        ([datetime.date(2024, 3, 1), None, None, datetime.date(2024, 3, 3)], {}),
        (pa.array([FIRST * 10**6 + 7, None, None, LAST * 10**6], pa.timestamp("us")), {}),
        (pa.array([FIRST * 10**9 + 7, None, None, LAST * 10**9], pa.timestamp("ns", "UTC")), {}),
        (["2024-03-01", None, None, "2024-03-03"], {}),
        (["13.03.2024", None, None, "15.03.2024"], {}),
    ],
)
def test_births_become_seconds(tmp_path: Path, values: Any, settings: dict[str, Any]) -> None:
    # Items 13 and 14 have events and no row.
    later = 12 * DAY if isinstance(values[0], str) and values[0].startswith("13") else 0
    expected = {10: FIRST + later, 11: None, 12: None, 99: LAST + later, 13: None, 14: None}
    assert births(tmp_path, values, **settings) == expected


def test_a_format_of_times_decides_between_day_and_month(tmp_path: Path) -> None:
    root = write_folder(
        tmp_path / "data",
        EVENTS | {"timestamp": [f"0{month}.01.2024" for month in (6, 7, 8, 6, 7, 8)]},
        {"item_id": [10, 11], "made": ["03.01.2024", "05.01.2024"]},
    )
    dataset = prepared(root, columns={"born": "made"}, time_format="%m.%d.%Y")
    assert dataset.born is not None
    assert sorted(dataset.born[dataset.born != NO_BIRTH]) == [FIRST, FIRST + 61 * DAY]


def test_years_begin_on_the_first_of_january(tmp_path: Path) -> None:
    assert births(tmp_path, [1970, None, 1960, 2024]) == {
        10: 0, 11: None, 12: -3653 * DAY, 99: 19723 * DAY, 13: None, 14: None,
    }  # fmt: skip


def test_births_before_1970_and_none_at_all(tmp_path: Path) -> None:
    assert births(tmp_path / "untyped", pa.nulls(4)) == dict.fromkeys([10, 11, 12, 99, 13, 14])
    assert births(tmp_path, pa.array([None] * 4, pa.int64())) == dict.fromkeys([10, 11, 12, 99, 13, 14])
    assert births(tmp_path / "other", [-DAY, None, None, FIRST])[10] == -DAY


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([FIRST * 1000, None, None, LAST * 1000], "expected seconds; as milliseconds it is 2024-03-03T00:00:00"),
        ([float("inf"), None, None, 1.0], "expected a finite number"),
        (["soon", None, None, "later"], "'soon'"),
        ([[1], None, None, [2]], "expected seconds, dates or timestamps"),
    ],
)
def test_other_values_are_refused(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"items.parquet: column 'made'.*{message}"):
        births(tmp_path, values)


def test_a_missing_column_or_table_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", EVENTS, {"item_id": [10], "made": [1]})
    with pytest.raises(UserError, match=r"items.parquet: column 'mode' is missing; did you mean 'made'.*"):
        prepared(root, columns={"born": "mode"})
    without = write_folder(tmp_path / "without", EVENTS)
    with pytest.raises(UserError, match=r"data.columns.born=made: the source has no items.parquet"):
        prepared(without, columns={"born": "made"})


def test_a_column_born_is_a_feature_unless_it_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", EVENTS, {"item_id": [10, 11], "born": [1.0, 2.0]})
    dataset = prepared(root)
    assert dataset.born is None
    assert [f.name for f in dataset.schema.owned_by("items")] == ["born"]


@pytest.mark.parametrize(("num_wrong", "resolution"), [(0, "seconds"), (1, "seconds"), (6, "seconds"), (6, "day")])
def test_births_after_most_events_are_unknown_if_they_are_many(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, num_wrong: int, resolution: str
) -> None:
    rows = range(100)
    times = [FIRST + DAY * (row // 10) for row in rows]
    events = {"user_id": [row % 10 for row in rows], "item_id": [row % 10 for row in rows], "timestamp": times}
    # With days, a birth within the day of the first event is none that is too late.
    right = FIRST + (DAY // 2 if resolution == "day" else 0)
    born = [FIRST + 6 * DAY if item < num_wrong else right for item in range(10)]
    # An item without events may be born at any time.
    items = {"item_id": [*range(10), 10], "made": [*born, FIRST + 99 * DAY]}
    root = write_folder(tmp_path / "data", events, items)
    dataset = prepared(root, columns={"born": "made"}, time_resolution=TimeResolution(resolution))
    assert dataset.born is not None
    found = dict(zip(dataset.item_ids.to_pylist(), dataset.born[1:].tolist(), strict=True))
    unknown = num_wrong if num_wrong > 1 else 0
    assert found == dict(zip(items["item_id"], [*[NO_BIRTH] * unknown, *items["made"][unknown:]], strict=True))
    said = [message for message in caplog.messages if "data.columns.born" in message]
    assert len(said) == (unknown > 0)
    if said:
        assert f"{root}/items.parquet: column 'made' (data.columns.born): most events of 6 of 10 items" in said[0]
