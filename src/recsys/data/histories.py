"""Events and profiles of users with outside values, in the order of the prepared data set. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.columns import ragged_positions
from recsys.core.schema import TimeResolution
from recsys.core.types import Int64Array
from recsys.data.preparation.engines import Session
from recsys.data.preparation.event_times import times_of
from recsys.data.preparation.feature_plans import FeaturePlan
from recsys.data.preparation.job import PreparationJob
from recsys.data.preparation.opened_events import open_events
from recsys.data.preparation.pipeline import read_entities


class UserEvents(NamedTuple):
    """Last events of a user, oldest first.

    Attributes:
        user_id: outside id.
        item_ids: outside id of the item of each event.
        times: time of each event in seconds, rounded down to days or 0 as `data.time` says; the place of its row if the
            data has no times.
        features: values of each event by name, without missing ones.
    """

    user_id: int | str
    item_ids: list[int | str]
    times: list[int]
    features: list[dict[str, Any]]


def stream_events(job: PreparationJob, session: Session, *, max_events: int) -> Iterator[UserEvents]:
    """Yield the last `max_events` events, of all parts, of every user with events, ordered by user.

    Raises:
        UserError: If an id or a timestamp is null.
    """
    plans = job.features_of("interactions")
    events, _, per_second = open_events(job, session)
    ordered = events.order_by("user_id", "part", "time", "shard", "row").select("user_id", "item_id", "time", *plans)
    for table in _whole_users(session, ordered):
        codes = np.asarray(pc.run_end_encode(table["user_id"].combine_chunks()).run_ends).astype(np.int64)
        lengths = np.minimum(np.diff(codes, prepend=0), max_events)
        table = table.take(pa.array(ragged_positions(codes - lengths, lengths)))
        ends = np.cumsum(lengths)
        users = table["user_id"].take(pa.array(ends - 1)).to_pylist()
        items = table["item_id"].to_pylist()
        times = _times(job, np.asarray(table["time"]), per_second).tolist()
        features = _feature_values(table, plans)
        for user_id, begin, end in zip(users, (ends - lengths).tolist(), ends.tolist(), strict=True):
            yield UserEvents(user_id, items[begin:end], times[begin:end], features[begin:end])


def stream_profiles(job: PreparationJob, session: Session) -> Iterator[tuple[int | str, dict[str, Any]]]:
    """Yield the id and profile features of every user with any, ordered by user.

    Raises:
        UserError: If an id is null or has several rows.
    """
    plans = job.features_of("users")
    if not plans:
        return
    ordered = read_entities(job, session, owner="users").order_by("user_id").select("user_id", *plans)
    for batch in session.stream(ordered):
        table = pa.Table.from_batches([batch])
        for user_id, profile in zip(table["user_id"].to_pylist(), _feature_values(table, plans), strict=True):
            if profile:
                yield user_id, profile


def _times(job: PreparationJob, raw: Int64Array, per_second: int) -> Int64Array:
    # Only the order counts in training, but later events arrive with seconds and must follow these.
    is_order = job.time_resolution is TimeResolution.ORDER
    return times_of(TimeResolution.SECONDS if is_order else job.time_resolution, raw, per_second=per_second)


def _whole_users(session: Session, ordered: ir.Table) -> Iterator[pa.Table]:
    """Yield the rows in tables that never end between two rows of a user."""
    left: pa.Table | None = None
    for batch in session.stream(ordered):
        table = pa.Table.from_batches([batch])
        if left is not None:
            table = pa.concat_tables([left, table]).combine_chunks()
        last = pc.equal(table["user_id"], table["user_id"][len(table) - 1])
        begin = pc.index(last, True).as_py()
        left = table[begin:]
        if begin:
            yield table[:begin]
    if left is not None and len(left):
        yield left


def _feature_values(table: pa.Table, plans: Mapping[str, FeaturePlan]) -> list[dict[str, Any]]:
    if not plans:
        return [{}] * len(table)
    columns = [_values(table[name], plan) for name, plan in plans.items()]
    names = [plan.name for plan in plans.values()]
    return [
        {name: value for name, value in zip(names, row, strict=True) if value is not None}
        for row in zip(*columns, strict=True)
    ]


def _values(column: pa.ChunkedArray, plan: FeaturePlan) -> list[Any]:
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    if plan.divisor == 1:
        values: list[Any] = column.to_pylist()
        return values
    # Times become seconds, as in training.
    return [None if value is None else value / plan.divisor for value in column.to_pylist()]
