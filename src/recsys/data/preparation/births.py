"""Births of items: the moment from which an item can be shown, from numbers, dates, timestamps and text."""

from __future__ import annotations

import logging
from typing import Any, NoReturn

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.errors import UserError
from recsys.core.index_time import DAY
from recsys.core.schema import TimeResolution
from recsys.core.time_units import LATEST, NAMES, PER_SECOND, TimeUnit, clear_unit, moment_text, unit_of
from recsys.core.types import Int64Array
from recsys.data.dataset import NO_BIRTH
from recsys.data.preparation.date_formats import FORMATS, BadDateError, DateFormat, FormatSearch, named_format
from recsys.data.preparation.engines import Session
from recsys.data.preparation.job import PreparationJob

log = logging.getLogger("recsys")

_MICROSECONDS = 1_000_000
# Share of items with contradictory births above which these births are not used.
_WRONG_SHARE = 0.1
# Whole numbers in this range are years, because as seconds they are in the first hour of 1970.
_YEARS = (1500, 2200)


def read_births(job: PreparationJob, session: Session, ordered: ir.Table) -> Int64Array:
    """Return the births in whole seconds since 1970, rounded down; a null is `NO_BIRTH`.

    Numbers are seconds, or in the unit `data.time_unit`. Whole numbers that are all years become their first second.

    Args:
        job: the preparation. Its settings may name the unit or the format of times.
        session: open engine.
        ordered: a row for each item in its final order, with the column `born`.

    Raises:
        UserError: If a value is no time. The message names the file.
    """
    found = pa.chunked_array([batch["born"] for batch in session.stream(ordered.select("born"))])
    table = job.tables["items"]
    kind = table.types[table.names["born"]]
    if pa.types.is_null(kind):
        return np.full(len(found), NO_BIRTH)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _filled(pc.cast(found, pa.int64()), per_second=_MICROSECONDS)
    if pa.types.is_string(kind):
        return _from_text(job, found)
    return _from_numbers(job, found)


def without_contradictions(
    job: PreparationJob, session: Session, born: Int64Array, *, events: ir.Table, items: ir.Table, per_second: int
) -> Int64Array:
    """Return the births, unknown for items of which most events are earlier, if these items are many.

    An item cannot be chosen before it can be shown. In training it would be hidden from all targets, and no index would
    show it. A few such items, such as films with a premiere before their year, are left as they are.

    Args:
        job: the preparation.
        session: open engine.
        born: int64 [N + 1], births by item_idx.
        events: rows with `item_id` and `time`.
        items: rows with `item_id` and `item_id_idx`.
        per_second: units of `time` in a second.
    """
    known = np.flatnonzero(born != NO_BIRTH)
    # First time that is not before the birth; with days, on its day.
    first = born[known] // DAY * DAY if job.time_resolution is TimeResolution.DAY else born[known] + 1
    limits = session.add(pa.table({"item_id_idx": known, "first": first * per_second}))
    limited = items.inner_join(limits, "item_id_idx").select("item_id", "item_id_idx", "first")
    joined = events.select("item_id", "time").inner_join(limited, "item_id")
    counted = joined.group_by("item_id_idx").aggregate(
        n=joined.count().cast("int64"), early=(joined.time < joined["first"]).cast("int64").sum()
    )
    found = session.collect(counted)
    item_idx, counts, early = (np.asarray(found[name]) for name in ("item_id_idx", "n", "early"))
    wrong = item_idx[early > counts / 2]
    if len(wrong) <= _WRONG_SHARE * len(item_idx):
        return born
    table = job.tables["items"]
    log.warning(
        "%s: column '%s' (data.columns.born): most events of %d of %d items are before the birth; their births are "
        "read as unknown. Expected the moment from which an item can be shown",
        table.place,
        table.names["born"],
        len(wrong),
        len(item_idx),
    )
    kept = born.copy()
    kept[wrong] = NO_BIRTH
    return kept


def _from_numbers(job: PreparationJob, found: pa.ChunkedArray) -> Int64Array:
    values = found.drop_null().to_numpy().astype(np.float64)
    if len(values) and not np.isfinite(values).all():
        _refuse(job, values[~np.isfinite(values)][0], "expected a finite number")
    if not len(values):
        return np.full(len(found), NO_BIRTH)
    low, high = float(values.min()), float(values.max())
    if job.settings.time_unit is None and _YEARS[0] <= low and high < _YEARS[1] and (values % 1 == 0).all():
        years = pc.fill_null(pc.cast(found, pa.int64()), 1970).to_numpy()
        seconds = (years - 1970).astype("datetime64[Y]").astype("datetime64[s]").astype(np.int64)
        return np.where(found.is_null().to_numpy(), NO_BIRTH, seconds)
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
    if pa.types.is_integer(found.type):
        return _filled(pc.cast(found, pa.int64()), per_second=PER_SECOND[unit])
    whole = pc.floor(pc.divide(pc.cast(found, pa.float64()), float(PER_SECOND[unit])))
    return _filled(pc.cast(whole, pa.int64()), per_second=1)


def _from_text(job: PreparationJob, found: pa.ChunkedArray) -> Int64Array:
    texts = found.combine_chunks()
    distinct = texts.drop_null().unique()
    if not len(distinct):
        return np.full(len(found), NO_BIRTH)
    try:
        chosen = _format(distinct, job.settings.time_format)
    except BadDateError as error:
        _refuse(job, error.text, str(error))
    micros = np.append(chosen.parse(distinct).micros, 0)
    rows = pc.fill_null(pc.index_in(texts, distinct), len(distinct)).to_numpy()
    return np.where(texts.is_null().to_numpy(zero_copy_only=False), NO_BIRTH, micros[rows] // _MICROSECONDS)


def _format(distinct: pa.Array, named: str | None) -> DateFormat:
    """Return the format of births: the named one if all have it, because events may have another, or else their own."""
    if named is not None:
        search = FormatSearch((named_format(named),))
        search.add(distinct)
        try:
            return search.result()
        except BadDateError:
            pass
    search = FormatSearch(FORMATS)
    search.add(distinct)
    return search.result()


def _filled(times: pa.ChunkedArray, *, per_second: int) -> Int64Array:
    seconds = pc.fill_null(times, 0).to_numpy() // per_second
    return np.where(times.is_null().to_numpy(), NO_BIRTH, seconds)


def _refuse(job: PreparationJob, value: Any, why: str) -> NoReturn:
    table = job.tables["items"]
    raise UserError(f"{table.place}: column '{table.names['born']}' (data.columns.born): found {value!r}; {why}")
