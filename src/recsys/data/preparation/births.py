"""Births of items: the moment from which an item can be shown, from numbers, dates, timestamps and text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from recsys.core.errors import UserError
from recsys.core.index_time import DAY
from recsys.core.schema import TimeResolution
from recsys.core.time_units import LATEST, NAMES, PER_SECOND, TimeUnit, clear_unit, moment_text, unit_of
from recsys.core.types import Int64Array
from recsys.data.dataset import NO_BIRTH
from recsys.data.preparation.date_formats import FORMATS, BadDateError, DateFormat, named_format
from recsys.data.preparation.engines import Session, first_row, rows
from recsys.data.preparation.event_times import look, not_finite
from recsys.data.preparation.job import PreparationJob
from recsys.data.preparation.vocabulary import Entities
from recsys.data.shards import ArrayFolder

log = logging.getLogger("recsys")

_MICROSECONDS = 1_000_000
# Returns the seconds since 1970 of values without nulls, rounded down.
_Seconds = Callable[[pa.Array], Int64Array]
# Share of items with contradictory births above which these births are not used.
_WRONG_SHARE = 0.1
# Whole numbers in this range are years, because as seconds they are in the first hour of 1970.
_YEARS = (1500, 2200)


def read_births(
    job: PreparationJob, session: Session, *, items: Entities, table: ir.Table, per_second: int
) -> ir.Table:
    """Return the births of all items.

    Numbers are seconds, or in the unit `data.time_unit`. Whole numbers that are all years become their first second.

    Args:
        job: the preparation. Its settings may name the unit or the format of times.
        session: open engine.
        items: all items.
        table: items table, with the column `born`.
        per_second: units of the times of events in a second.

    Returns:
        `item_id`, `item_id_idx`, `born` (seconds since 1970, rounded down) and `first`, the first time of an event that
        is not before the birth.

    Raises:
        UserError: If a value is no time. The message names the file.
    """
    names = job.tables["items"]
    kind = names.types[names.names["born"]]
    seconds: _Seconds = partial(_whole, per_second=_MICROSECONDS)
    if pa.types.is_null(kind):
        table = table.mutate(born=ibis.null("int64"))
    elif pa.types.is_string(kind):
        texts = table.filter(table.born.notnull()).select(text=table.born).distinct()
        seconds = partial(_of_texts, form=_format(job, session, texts))
    elif not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        seconds = _numbers(job, session, table)
    each = items.table.left_join(table, "item_id").select("item_id", "item_id_idx", "born")
    place = each.schema().to_pyarrow().field("item_id")
    schema = pa.schema([place, *(pa.field(name, pa.int64()) for name in ("item_id_idx", "born", "first"))])
    is_daily = job.time_resolution is TimeResolution.DAY
    convert = partial(_converted, schema=schema, seconds=seconds, is_daily=is_daily, per_second=per_second)
    return session.keep(session.map(each, convert, schema))


def without_contradictions(job: PreparationJob, session: Session, births: ir.Table, *, events: ir.Table) -> ir.Table:
    """Return the births, unknown for items of which most events are earlier, if these items are many.

    An item cannot be chosen before it can be shown. In training it would be hidden from all targets, and no index would
    show it. A few such items, such as films with a premiere before their year, are left as they are.
    """
    known = births.filter(births.born.notnull()).select("item_id", "item_id_idx", "first")
    joined = events.select("item_id", "time").inner_join(known, "item_id")
    counted = joined.group_by("item_id_idx").aggregate(
        n=joined.count(), early=(joined.time < joined["first"]).cast("int64").sum()
    )
    wrong = counted.filter(counted.early * 2 > counted.n).select("item_id_idx", is_wrong=True)
    num_items, num_wrong = (first_row(session, of.aggregate(n=of.count()))["n"] for of in (counted, wrong))
    if num_wrong <= _WRONG_SHARE * num_items:
        return births
    table = job.tables["items"]
    log.warning(
        "%s: column '%s' (data.columns.born): most events of %d of %d items are before the birth; their births are "
        "read as unknown. Expected the moment from which an item can be shown",
        table.place,
        table.names["born"],
        num_wrong,
        num_items,
    )
    marked = births.left_join(wrong, "item_id_idx")
    return marked.select("item_id_idx", born=marked.is_wrong.isnull().ifelse(marked.born, ibis.null("int64")))


def write_births(session: Session, births: ir.Table, *, folder: Path) -> None:
    """Write `born.npy`, in which item 0 and items without a birth have `NO_BIRTH`."""
    with ArrayFolder(str(folder)) as arrays:
        born = arrays.open("born", np.int64)
        born.add(np.array([NO_BIRTH]))
        for batch in session.stream(births.order_by("item_id_idx").select("born")):
            born.add(np.asarray(batch["born"].fill_null(NO_BIRTH)))


def _converted(
    batches: Iterator[pa.RecordBatch], *, schema: pa.Schema, seconds: _Seconds, is_daily: bool, per_second: int
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        is_known = np.asarray(batch["born"].is_valid())
        born = np.zeros(len(batch), np.int64)
        born[is_known] = seconds(batch["born"].drop_null())
        # With days, an event on the day of the birth is not before it.
        first = born // DAY * DAY if is_daily else born + 1
        known = pa.array(born, mask=~is_known)
        yield pa.record_batch([batch["item_id"], batch["item_id_idx"], known, first * per_second], schema=schema)


def _whole(values: pa.Array, *, per_second: int) -> Int64Array:
    return np.asarray(values.cast(pa.int64())) // per_second


def _rounded(values: pa.Array, *, per_second: int) -> Int64Array:
    return np.floor(np.asarray(values.cast(pa.float64())) / per_second).astype(np.int64)


def _of_years(values: pa.Array) -> Int64Array:
    years = np.asarray(values.cast(pa.int64())) - 1970
    return years.astype("datetime64[Y]").astype("datetime64[s]").astype(np.int64)


def _of_texts(values: pa.Array, *, form: DateFormat) -> Int64Array:
    return form.parse(values).micros // _MICROSECONDS


def _numbers(job: PreparationJob, session: Session, table: ir.Table) -> _Seconds:
    """Return the function that reads the numbers of the column."""
    born = table.born.cast("float64")
    for row in rows(session, table.filter(not_finite(born)).select("born").limit(1)):
        _refuse(job, row["born"], "expected a finite number")
    fractions = (born != born.floor()).cast("int64").sum()
    found = first_row(session, table.aggregate(low=born.min(), high=born.max(), fractions=fractions))
    if found["low"] is None:
        return partial(_whole, per_second=1)
    low, high = found["low"], found["high"]
    if job.settings.time_unit is None and _YEARS[0] <= low and high < _YEARS[1] and not found["fractions"]:
        return _of_years
    farthest = max(low, high, key=abs)
    clear = clear_unit(farthest)
    unit: TimeUnit = job.settings.time_unit or "s"
    if clear not in (None, unit) or abs(farthest) > LATEST * PER_SECOND[unit]:
        other = clear or unit_of(farthest)
        _refuse(
            job,
            int(farthest),
            f"expected {NAMES[unit]}; as {NAMES[other]} it is {moment_text(farthest, other)}, and "
            f"data.time_unit={other} reads all times so",
        )
    return partial(_whole if table.born.type().is_integer() else _rounded, per_second=PER_SECOND[unit])


def _format(job: PreparationJob, session: Session, texts: ir.Table) -> DateFormat:
    """Return the format of births: the named one if all have it, because events may have another, or else their own."""
    named = job.settings.time_format
    if named is not None:
        with suppress(BadDateError):
            return look(session, texts, formats=(named_format(named),)).search.result()
    try:
        return look(session, texts, formats=FORMATS).search.result()
    except BadDateError as error:
        _refuse(job, error.text, str(error))


def _refuse(job: PreparationJob, value: Any, why: str) -> NoReturn:
    table = job.tables["items"]
    raise UserError(f"{table.place}: column '{table.names['born']}' (data.columns.born): found {value!r}; {why}")
