"""Times of events in every form that files have, and every mistake that a message must name."""

from __future__ import annotations

import datetime
import decimal
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from folders import EVENTS, SMALL, histories, prepared, write_folder

from recsys.core.errors import UserError
from recsys.data.histories import stream_events
from recsys.data.preparation.prepare import plan_preparation
from recsys.data.preparation.settings import DataSettings
from recsys.data.preparation.splits import LeaveLastOutSplit
from recsys.data.sources import ParquetFolder

# Six moments of April 2015, in seconds; those of user 1 come first.
BEGIN = 1_430_000_000
SECONDS = [BEGIN + 100_000 * at for at in (1, 2, 3, 1, 2, 3)]


def with_times(values: Any) -> dict[str, Any]:
    return EVENTS | {"timestamp": values}


def times(tmp_path: Path, *shards: Any, **settings: Any) -> list[int]:
    root = write_folder(tmp_path / "data", [with_times(shard) for shard in shards])
    return prepared(root, **settings).time.tolist()  # type: ignore[no-any-return]


def texts(form: str, seconds: list[int] = SECONDS) -> list[str]:
    return [datetime.datetime.fromtimestamp(value, datetime.UTC).strftime(form) for value in seconds]


@pytest.mark.parametrize(
    ("values", "settings", "resolution"),
    [
        (SECONDS, {}, 1),
        ([float(value) + 0.25 for value in SECONDS], {}, 1),
        ([decimal.Decimal(value) + decimal.Decimal("0.5") for value in SECONDS], {}, 1),
        ([value * 10**3 + 999 for value in SECONDS], {"time_unit": "ms"}, 1),
        ([value * 10**6 + 999_999 for value in SECONDS], {"time_unit": "us"}, 1),
        ([value * 10**9 + 999_999_999 for value in SECONDS], {"time_unit": "ns"}, 1),
        ([value * 1e3 + 999 for value in SECONDS], {"time_unit": "ms"}, 1),
        ([str(value) for value in SECONDS], {}, 1),
        ([f" {value}.75" for value in SECONDS], {}, 1),
        ([str(value * 1000) for value in SECONDS], {"time_unit": "ms"}, 1),
        (texts("%Y-%m-%dT%H:%M:%S.5Z"), {}, 1),
        (texts("%m/%d/%Y %H:%M:%S"), {}, 1),
        (texts("%d.%m.%Y %H:%M:%S"), {"time_format": "%d.%m.%Y %H:%M:%S"}, 1),
        ([int(text) for text in texts("%y%m%d%H%M%S")], {"time_format": "%y%m%d%H%M%S"}, 1),
        ([int(text) for text in texts("%Y%m%d%H%M%S")], {}, 1),
        ([int(text) for text in texts("%Y%m%d%H%M")], {}, 60),
        ([int(text) for text in texts("%Y%m%d")], {}, 86_400),
        (texts("%d-%m-%Y"), {}, 86_400),
        (pa.array(texts("%d-%m-%Y")).dictionary_encode(), {}, 86_400),
    ],
)
def test_every_form(tmp_path: Path, values: Any, settings: dict[str, Any], resolution: int) -> None:
    assert times(tmp_path, values, **settings) == [value // resolution * resolution for value in SECONDS]


def test_parts_of_a_second_order_events(tmp_path: Path) -> None:
    """Within one second, milliseconds still decide which event is the last."""
    late_first = [BEGIN * 1000 + at for at in (30, 20, 10, 1, 2, 3)]
    root = write_folder(tmp_path / "data", with_times(late_first))
    assert histories(prepared(root, time_unit="ms")) == {1: ([12], [11], [10]), 2: ([10], [13], [14])}


@pytest.mark.parametrize(("unit", "scale"), [("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
@pytest.mark.parametrize("kind", [int, float, str])
def test_other_units_are_never_read_as_seconds(tmp_path: Path, unit: str, scale: int, kind: type) -> None:
    wrong = [kind(value * scale) for value in SECONDS]
    with pytest.raises(UserError, match=rf"'timestamp' holds .*, expected seconds; .*data.time_unit={unit} reads"):
        times(tmp_path, wrong)


def test_the_unit_that_was_named_is_wrong(tmp_path: Path) -> None:
    """A number of today in another unit is never read with the one that was named."""
    for scale, other, given in ((10**9, "ns", "ms"), (10**3, "ms", "s"), (1, "s", "ms"), (10**3, "ms", "us")):
        wrong = [value * scale for value in SECONDS]
        with pytest.raises(UserError, match=rf"holds 1430300000\d*, as .*; data.time_unit={other} reads"):
            times(tmp_path / other / given, wrong, time_unit=given)
    with pytest.raises(UserError, match=r"data.time_unit=sec: no such unit"):
        times(tmp_path / "b", SECONDS, time_unit="sec")
    # Numbers that count from some other moment show no unit.
    assert times(tmp_path / "c", [500, 1500, 2500] * 2, time_unit="ms") == [0, 1, 2] * 2


def test_shards_of_two_units(tmp_path: Path) -> None:
    thousands = [value * 1000 for value in SECONDS]
    with pytest.raises(UserError, match=r"part-001.*holds milliseconds \(\d+\), but .*part-000.* holds seconds"):
        times(tmp_path / "a", SECONDS, thousands)
    with pytest.raises(UserError, match=r"part-001.*holds 1430300000, as milliseconds 1970-01-17T13:18:20, as seconds"):
        times(tmp_path / "b", thousands, SECONDS, time_unit="ms")


def test_two_units_in_one_shard(tmp_path: Path) -> None:
    mixed = [value * 1000 if at % 2 else value for at, value in enumerate(SECONDS)]
    with pytest.raises(UserError, match=r"holds 143\d+ and 143\d+, which are seconds and milliseconds; expected one"):
        times(tmp_path, mixed)


def test_dates_and_seconds_in_two_shards(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"part-001.*holds dates such as 20150427, but .*part-000.* holds other"):
        times(tmp_path, SECONDS, [20150427] * 6)
    # Small numbers that are no dates are seconds since some moment.
    assert times(tmp_path / "b", [20_159_999, 20_160_000] * 3)[0] == 20_159_999
    assert times(tmp_path / "c", [20150427] * 6, time_unit="s") == [20150427] * 6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [1.5, float("nan"), 2.0, 1.0, 2.0, 3.0],
            r"column 'timestamp', row 2: found nan; expected a finite",
        ),
        ([1.5, 2.0, float("inf"), 1.0, 2.0, 3.0], r"row 3: found inf"),
        (["2015-04-27"] * 5 + ["27.04."], r"row 6: found '27.04.'; it is not a date in the format of '2015-04-27'"),
        (
            ["01/02/2015"] * 6,
            r"row 1: found '01/02/2015'; day and month cannot .*data.time_format=%d/%m/%Y",
        ),
        (["12"] * 5 + ["x"], r"row 1: found '12'; expected seconds|row 6: found 'x'; expected seconds"),
        ([True] * 6, r"column 'timestamp' holds bool, expected seconds, dates or timestamps"),
    ],
)
def test_refusals_name_the_row(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        times(tmp_path, values)


def test_the_range_of_times_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "recsys"):
        times(tmp_path, texts("%d-%m-%Y"))
    assert "times from 2015-04-27T00:00:00 to 2015-04-29T00:00:00 UTC" in caplog.text


@pytest.mark.parametrize(
    ("first", "settings", "warned"),
    [
        (2015, {}, True),
        (42206.5, {}, True),
        (201504, {}, True),
        (42206, {"time_unit": "s"}, False),
        (42206, {"time_resolution": "order"}, False),
        (BEGIN, {}, False),
        (1, {}, False),
    ],
)
def test_numbers_that_are_hardly_seconds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, first: float, settings: dict[str, Any], warned: bool
) -> None:
    times(tmp_path, [first + at for at in range(6)], **settings)
    assert ("read as seconds after 1970; for years, months or days" in caplog.text) == warned


def test_rows_give_the_order_without_times(tmp_path: Path) -> None:
    rows = {name: EVENTS[name] for name in ("user_id", "item_id")}
    root = write_folder(tmp_path / "data", [rows, {"user_id": [1, 2], "item_id": [15, 16]}])
    dataset = prepared(root, time_resolution="order")
    assert histories(dataset) == {1: ([10, 11], [12], [15]), 2: ([10, 13], [14], [16])}
    assert dataset.time.tolist() == [0, 1, 2, 6, 3, 4, 5, 7]
    with pytest.raises(UserError, match=r"column 'timestamp' is missing.*data.time=order \(the order of the rows\)"):
        prepared(root)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([value * 10**6 + 1 for value in SECONDS], pa.timestamp("us")), SECONDS[:3]),
        ([1, 2, 3, 1, 2, 3], [1, 2, 3]),
    ],
)
def test_stored_histories_have_seconds(tmp_path: Path, values: Any, expected: list[int]) -> None:
    """With data.time=order as well: later events arrive with seconds and must not come before these."""
    root = write_folder(tmp_path / "data", with_times(values))
    settings = DataSettings(time_resolution="order")  # type: ignore[arg-type]
    job = plan_preparation(ParquetFolder(str(root)), LeaveLastOutSplit(), settings=settings, cache=tmp_path / "cache")
    with SMALL.open(tmp_path) as session:
        assert next(stream_events(job, session, max_events=10)).times == expected
