"""Times of events: from numbers in any unit, dates, timestamps and text to integers that the engine compares.

Whole seconds stay seconds; everything else becomes microseconds. A unit or a format is recognised from all values, and
values that can be read in two ways are refused.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.errors import UserError
from recsys.core.index_time import DAY
from recsys.core.schema import TimeResolution
from recsys.core.time_units import LATEST, NAMES, PER_SECOND, TimeUnit, clear_unit, moment_text, unit_of
from recsys.core.types import Int64Array
from recsys.data.preparation.date_formats import COMPACT, FORMATS, BadDateError, DateFormat, FormatSearch, named_format
from recsys.data.preparation.engines import Session, first_row, rows
from recsys.data.preparation.job import PreparationJob

log = logging.getLogger("recsys")

_MICROSECONDS = 1_000_000
_LOOKED = pa.schema({"looked": pa.binary()})
_PARSED = pa.schema({"text_of_time": pa.string(), "micros": pa.int64()})
_NUMBER = r"^\s*[+-]?\d+(\.\d*)?([eE][+-]?\d+)?\s*$"
_INTEGER = r"^\s*[+-]?(\d{1,18}|[1-8]\d{18})\s*$"
# Numbers below this are probably years, months or days of a spreadsheet, because as seconds they are in January 1970.
_FIRST_DAYS = 1_000_000
# Dates that are written as integers: 20150427, 201504271305 and 20150427130500.
_COMPACT_RANGES = tuple((1900 * 10**digits, 2101 * 10**digits) for digits in (4, 8, 10))


class TimedEvents(NamedTuple):
    """Events with a column `time`, int64, that has `per_second` units a second; 0 if it only orders the events."""

    events: ir.Table
    per_second: int


def with_times(job: PreparationJob, session: Session, events: ir.Table) -> TimedEvents:
    """Return the events with times as integers.

    Args:
        job: the preparation. Its settings may name the unit or the format of the times.
        session: open engine.
        events: rows of the interactions, with a column `time` if they have one and it counts.

    Raises:
        UserError: If a time is missing, cannot be read, or can be read in several ways. The message names the file.
    """
    if "time" not in events.columns:
        if job.settings.time_resolution.has_clock:
            log.info(
                "%s: no column 'timestamp', so data.time=none: events have neither an order nor days; "
                "data.columns.timestamp names another column",
                job.interactions.place,
            )
        order = _by_row(job, events) if job.takes_row_order else events.mutate(time=ibis.literal(0, "int64"))
        return TimedEvents(order, 0)
    kind = job.interactions.types[job.interactions.names["timestamp"]]
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        timed = TimedEvents(events, _MICROSECONDS)
    elif pa.types.is_string(kind):
        timed = _from_text(job, session, events)
    else:
        timed = _from_numbers(job, session, events)
    _report(job, session, timed)
    return timed


def not_finite(numbers: ir.Value) -> ir.BooleanValue:
    """Return which numbers are nan or infinite."""
    # As text, because DuckDB trusts statistics of Parquet files, which leave out nan.
    return numbers.cast("string").lower().isin(["nan", "inf", "-inf", "infinity", "-infinity"])


def _by_row(job: PreparationJob, events: ir.Table) -> ir.Table:
    """Add the place of each row among all rows as its time. A further shard changes no time of an earlier one."""
    if job.interactions.lists:
        return events.mutate(time=ibis.row_number().over(ibis.window(order_by=["shard", "row"])).cast("int64"))
    num_rows = [shard.num_rows for shard in job.interactions.shards]
    begins = ibis.array((np.cumsum(num_rows) - num_rows).tolist())
    return events.mutate(time=(begins[events.shard.cast("int32")] + events.row).cast("int64"))


def _from_numbers(job: PreparationJob, session: Session, events: ir.Table) -> TimedEvents:
    is_whole = events.time.type().is_integer()
    if job.settings.time_format is not None:
        return _from_text(job, session, events.mutate(time=events.time.cast("string")))
    events = events.mutate(time=events.time.cast("int64" if is_whole else "float64"))
    if not is_whole:
        _refuse(job, session, events.filter(not_finite(events.time)), "expected a finite number")
        fractions = events.aggregate(n=(events.time != events.time.floor()).sum())
        is_whole = not first_row(session, fractions)["n"]
        events = events.mutate(time=events.time.cast("int64")) if is_whole else events
    bounds = events.group_by("shard").aggregate(low=events.time.min(), high=events.time.max()).order_by("shard")
    shards = rows(session, bounds)
    if is_whole and job.settings.time_unit is None and _are_compact_dates(job, session, events, shards=shards):
        return _from_text(job, session, events.mutate(time=events.time.cast("string")))
    unit = _unit(job, shards)
    per_second = PER_SECOND[unit]
    if not is_whole:
        micros = (events.time * (_MICROSECONDS / per_second)).floor().cast("int64")
    elif unit == "s":
        return TimedEvents(events, 1)
    elif per_second <= _MICROSECONDS:
        micros = events.time * (_MICROSECONDS // per_second)
    else:
        # The remainder is taken off first, so that the quotient is exact.
        micros = ((events.time - (events.time % 1000 + 1000) % 1000) / 1000).round().cast("int64")
    return TimedEvents(events.mutate(time=micros), _MICROSECONDS)


def _are_compact_dates(
    job: PreparationJob, session: Session, events: ir.Table, *, shards: list[dict[str, Any]]
) -> bool:
    """Decide whether integers are dates such as 20150427, in every shard or in none."""
    found: dict[bool, int] = {}
    for shard in shards:
        is_date = any(low <= shard["low"] and shard["high"] < high for low, high in _COMPACT_RANGES)
        if is_date:
            of_shard = events.filter(events.shard == shard["shard"]).select(text=events.time.cast("string")).distinct()
            is_date = look(session, of_shard, formats=()).are_dates
        found.setdefault(is_date, shard["shard"])
    if len(found) == 2:
        files, name = job.interactions.shown, job.interactions.names["timestamp"]
        raise UserError(
            f"{files[found[True]]}: column '{name}' holds dates such as {shards[found[True]]['low']}, but "
            f"{files[found[False]]} holds other numbers; expected one kind in all shards"
        )
    return True in found


def _unit(job: PreparationJob, shards: list[dict[str, Any]]) -> TimeUnit:
    """Return the unit of numbers, given the lowest and highest of each shard.

    Raises:
        UserError: If it is not seconds and not given, if shards differ, or if a time is beyond the year 9999.
    """
    files, name, given = job.interactions.shown, job.interactions.names["timestamp"], job.settings.time_unit
    units: dict[TimeUnit, tuple[str, float]] = {}
    for shard in shards:
        place, highest = files[shard["shard"]], max(shard["low"], shard["high"], key=abs)
        unit, clear = given or unit_of(highest), clear_unit(highest)
        if clear not in (None, unit) or abs(highest) > LATEST * PER_SECOND[unit]:
            other = clear or unit_of(highest)
            raise UserError(
                f"{place}: column '{name}' holds {highest}, as {NAMES[unit]} {moment_text(highest, unit)}, as "
                f"{NAMES[other]} {moment_text(highest, other)}; data.time_unit={other} reads {NAMES[other]}"
            )
        lowest = clear_unit(shard["low"])
        if given is None and lowest not in (None, unit):
            raise UserError(
                f"{place}: column '{name}' holds {shard['low']} and {shard['high']}, which are "
                f"{NAMES[str(lowest)]} and {NAMES[unit]}; expected one unit"
            )
        for other, (file, value) in units.items():
            if other != unit:
                raise UserError(
                    f"{place}: column '{name}' holds {NAMES[unit]} ({highest}), but {file} holds {NAMES[other]} "
                    f"({value}); expected one unit in all shards"
                )
        units.setdefault(unit, (place, highest))
    unit, (place, value) = next(iter(units.items()))
    if given is None and unit != "s":
        raise UserError(
            f"{place}: column '{name}' holds {value}, expected seconds; as {NAMES[unit]} it is "
            f"{moment_text(value, unit)}, and data.time_unit={unit} reads it so"
        )
    return unit


def _from_text(job: PreparationJob, session: Session, events: ir.Table) -> TimedEvents:
    named = job.settings.time_format
    distinct = session.keep(events.select(text=events.time).distinct())
    looked = look(session, distinct, formats=FORMATS if named is None else (named_format(named),))
    if named is None and looked.are_numbers and not looked.are_dates:
        kind = "int64" if looked.are_whole else "float64"
        return _from_numbers(job, session, events.mutate(time=events.time.strip().cast(kind)))
    try:
        found = looked.search.result()
    except BadDateError as error:
        _refuse(job, session, events.filter(events.time == error.text), str(error))
        raise
    micros = session.map(distinct, partial(_parsed, found=found), _PARSED)
    joined = events.rename(text_of_time="time").inner_join(micros, "text_of_time")
    others = [name for name in events.columns if name != "time"]
    return TimedEvents(joined.select(*others, time=joined.micros), _MICROSECONDS)


@dataclass
class _Looked:
    """Common format of the texts of times."""

    search: FormatSearch
    are_numbers: bool = True
    are_whole: bool = True
    are_dates: bool = True

    def add(self, texts: pa.Array) -> None:
        self.search.add(texts)
        self.are_numbers = self.are_numbers and _all_match(texts, _NUMBER)
        if self.are_numbers:
            self.are_whole = self.are_whole and _all_match(texts, _INTEGER)
            self.are_dates = self.are_dates and bool(COMPACT.parse(texts).valid.all())

    def merge(self, other: _Looked) -> None:
        self.search.merge(other.search)
        self.are_numbers &= other.are_numbers
        self.are_whole &= other.are_whole
        self.are_dates &= other.are_dates


def look(session: Session, texts: ir.Table, *, formats: tuple[DateFormat, ...]) -> _Looked:
    """Look at the column `text`, on the workers of the engine: there may be as many texts as events."""
    looked = _Looked(FormatSearch(formats))
    found = session.collect(session.map(texts, partial(_looked, formats=formats), _LOOKED))
    for part in found["looked"].to_pylist():
        looked.merge(pickle.loads(part))
    return looked


def _looked(batches: Iterator[pa.RecordBatch], formats: tuple[DateFormat, ...]) -> Iterator[pa.RecordBatch]:
    looked = _Looked(FormatSearch(formats))
    for batch in batches:
        looked.add(batch["text"])
    yield pa.record_batch([[pickle.dumps(looked)]], schema=_LOOKED)


def _parsed(batches: Iterator[pa.RecordBatch], found: DateFormat) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield pa.record_batch([batch["text"], found.parse(batch["text"]).micros], schema=_PARSED)


def _all_match(texts: pa.Array, pattern: str) -> bool:
    return pc.all(pc.match_substring_regex(texts, pattern)).as_py() is not False


def _refuse(job: PreparationJob, session: Session, wrong: ir.Table, why: str) -> None:
    """Refuse the first of the rows `wrong`, if there are any."""
    table = job.interactions
    for row in rows(session, wrong.order_by("shard", "row").select("shard", "row", "time").limit(1)):
        place = "" if table.lists else f", row {row['row'] + 1}"
        raise UserError(
            f"{table.shown[row['shard']]}: column '{table.names['timestamp']}'{place}: found {row['time']!r}; {why}"
        )


def _report(job: PreparationJob, session: Session, timed: TimedEvents) -> None:
    """Log the first and last time, which show a wrong unit or format at a glance."""
    time = timed.events.time
    found = first_row(session, timed.events.aggregate(low=time.min(), high=time.max()))
    unit: TimeUnit = "s" if timed.per_second == 1 else "us"
    if job.time_resolution.has_clock and found["low"] is not None:
        log.info("times from %s to %s UTC", *(moment_text(found[name], unit) for name in ("low", "high")))
        low, high = (found[name] // timed.per_second for name in ("low", "high"))
        is_number = not pa.types.is_temporal(job.interactions.types[job.interactions.names["timestamp"]])
        if is_number and job.settings.time_unit is None and low >= 1900 and high < _FIRST_DAYS:
            log.warning(
                "%s: column '%s' holds %d to %d, read as seconds after 1970; for years, months or days of a "
                "spreadsheet data.time=order takes their order alone; data.time_unit=s confirms seconds",
                job.interactions.place, job.interactions.names["timestamp"], low, high,
            )  # fmt: skip


def times_of(resolution: TimeResolution, raw: Int64Array, *, per_second: int) -> Int64Array:
    """Convert the engine's times, `per_second` units a second, to a resolution."""
    if resolution is TimeResolution.NONE:
        return np.zeros_like(raw)
    if resolution is TimeResolution.ORDER:
        return raw
    # Without units a second they only order, and stay as they are.
    seconds = raw // per_second if per_second > 1 else raw
    return seconds // DAY * DAY if resolution is TimeResolution.DAY else seconds
