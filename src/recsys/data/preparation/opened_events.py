"""Events of a source: read, checked, timed, and assigned to parts; exposures apart."""

from __future__ import annotations

from typing import NamedTuple

import ibis.expr.types as ir

from recsys.core.errors import UserError
from recsys.data.preparation.engines import Read, Session, rows
from recsys.data.preparation.event_times import not_finite, with_times
from recsys.data.preparation.job import PreparationJob
from recsys.data.preparation.reading import read_table, without_suppressed
from recsys.data.preparation.vocabulary import keep_core
from recsys.data.sources.tables import reads

_LARGEST = 3.4e38


class OpenedEvents(NamedTuple):
    """Unordered events with their `part`, exposures or None if the data has none, and the units of `time` a second."""

    events: ir.Table
    exposed: ir.Table | None
    per_second: int


def open_events(job: PreparationJob, session: Session) -> OpenedEvents:
    """Return the events and exposures. With `data.weight` the events have a column `weight`.

    Raises:
        UserError: If an id or a timestamp is null, a weight is not valid, or nobody engaged.
    """
    settings, table = job.settings, job.interactions
    wanted = reads(table, ("user_id", "item_id", "timestamp", "split"))
    wanted |= {name: plan.read for name, plan in job.features_of("interactions").items()}
    engaged = settings.engaged
    if engaged is not None:
        wanted["engaged_by"] = Read(engaged.column)
    if settings.weight is not None:
        wanted["weight"] = Read(settings.weight)
    source = without_suppressed(session, read_table(session, table, wanted), settings.suppressed)
    if engaged is not None:
        source = source.mutate(engaged=engaged.flag(source.engaged_by))
    _check_nulls(job, session, source)
    if settings.weight is not None:
        source = source.mutate(weight=source.weight.cast("float64"))
        _check_weights(job, session, source if engaged is None else source.filter(source.engaged))
    source, per_second = with_times(job, session, source)
    exposed = None
    if engaged is not None:
        engaged.check_found(session, source, place=table.place, values="engaged_by")
        exposed = source.filter(~source.engaged) if engaged.others == "exposures" else None
        source = source.filter(source.engaged)
    events = source
    if job.drops_rare:
        events = keep_core(
            session,
            source,
            min_user_events=settings.min_user_events,
            min_item_events=settings.min_item_events,
        )
    return OpenedEvents(session.keep(job.split.assign(session, events, source=source)), exposed, per_second)


def _check_nulls(job: PreparationJob, session: Session, events: ir.Table) -> None:
    """Refuse nulls in columns that every event needs. The message names the shard."""
    table, settings = job.interactions, job.settings
    columns = {"user_id": "user_id", "item_id": "item_id", "timestamp": "time"}
    names = {columns[key]: name for key, name in table.names.items() if key in columns}
    if settings.engaged is not None:
        names["engaged"] = settings.engaged.column
    if settings.weight is not None:
        names["weight"] = settings.weight
    nulls = {name: events[name].isnull().sum() for name in names}
    for found in rows(session, events.group_by("shard").aggregate(**nulls).order_by("shard")):
        for name, column in names.items():
            if found[name]:
                raise UserError(
                    f"{table.shown[found['shard']]}: column '{column}' has {found[name]} nulls, expected none"
                )


def _check_weights(job: PreparationJob, session: Session, events: ir.Table) -> None:
    """Refuse weights that are negative or not finite, and weights none of which is positive."""
    table, weight = job.interactions, events.weight
    fine = ~not_finite(weight) & (weight >= 0) & (weight <= _LARGEST)
    wrong = events.filter(~fine).order_by("shard", "row").select("shard", "row", "weight").limit(1)
    for row in rows(session, wrong):
        raise UserError(
            f"{table.shown[row['shard']]}: column '{job.settings.weight}', row {row['row'] + 1}: found "
            f"{row['weight']:g}; a weight (data.weight) is a finite number of 0 or more"
        )
    if not rows(session, events.filter(weight > 0).select("row").limit(1)):
        raise UserError(f"data.weight={job.settings.weight}: every weight in {table.place} is 0, expected larger ones")
