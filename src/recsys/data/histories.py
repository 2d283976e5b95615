"""Every user's events and profile as outside values, in the order of the prepared data set. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.columns import ragged_positions
from recsys.data.preparation.array_writers import times_of
from recsys.data.preparation.engines import Session
from recsys.data.preparation.feature_plans import Plan
from recsys.data.preparation.job import Build
from recsys.data.preparation.pipeline import open_events, read_listed


class UserEvents(NamedTuple):
    """The last events of a user, oldest first.

    Attributes:
        user_id: outside id.
        item_ids: outside ids, one for each event.
        times: as the prepared data set has them.
        features: values by name, those that are missing left out, of each event.
    """

    user_id: int | str
    item_ids: list[int | str]
    times: list[int]
    features: list[dict[str, Any]]


def stream_events(job: Build, session: Session, max_events: int) -> Iterator[UserEvents]:
    """The last `max_events` events of every user that has any, of all parts, ordered by user.

    Raises:
        UserError: nulls where an event needs a value.
    """
    plans = job.plans_of("interactions")
    events, _ = open_events(job, session)
    ordered = events.order_by("user_id", "part", "time", "shard", "row").select("user_id", "item_id", "time", *plans)
    for table in _whole_users(session, ordered):
        codes = np.asarray(pc.run_end_encode(table["user_id"].combine_chunks()).run_ends).astype(np.int64)
        lengths = np.minimum(np.diff(codes, prepend=0), max_events)
        table = table.take(pa.array(ragged_positions(codes - lengths, lengths)))
        ends = np.cumsum(lengths)
        users = table["user_id"].take(pa.array(ends - 1)).to_pylist()
        items = table["item_id"].to_pylist()
        times = times_of(job, np.asarray(table["time"])).tolist()
        features = _named(table, plans)
        for user_id, begin, end in zip(users, (ends - lengths).tolist(), ends.tolist(), strict=True):
            yield UserEvents(user_id, items[begin:end], times[begin:end], features[begin:end])


def stream_profiles(job: Build, session: Session) -> Iterator[tuple[int | str, dict[str, Any]]]:
    """Profile features of every user in the users table that has any, ordered by user.

    Raises:
        UserError: a null or repeated id.
    """
    plans = job.plans_of("users")
    if not plans:
        return
    ordered = read_listed(job, session, "users").order_by("user_id").select("user_id", *plans)
    for batch in session.stream(ordered):
        table = pa.Table.from_batches([batch])
        for user_id, profile in zip(table["user_id"].to_pylist(), _named(table, plans), strict=True):
            if profile:
                yield user_id, profile


def _whole_users(session: Session, ordered: ir.Table) -> Iterator[pa.Table]:
    """The rows in tables that end where a user's rows end."""
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


def _named(table: pa.Table, plans: Mapping[str, Plan]) -> list[dict[str, Any]]:
    """The features of each row by their outside names."""
    if not plans:
        return [{}] * len(table)
    columns = [_values(table[name], plan) for name, plan in plans.items()]
    names = [plan.name for plan in plans.values()]
    return [
        {name: value for name, value in zip(names, row, strict=True) if value is not None}
        for row in zip(*columns, strict=True)
    ]


def _values(column: pa.ChunkedArray, plan: Plan) -> list[Any]:
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    if plan.divisor == 1:
        values: list[Any] = column.to_pylist()
        return values
    # Times count in seconds, as they do in training.
    return [None if value is None else value / plan.divisor for value in column.to_pylist()]
