"""Turn a frame of events into the queries that a release answers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.errors import UserError, nearest
from recsys.publishing.audience import Unknown, check_columns, refuse_unknown, user_table
from recsys.publishing.frames import Frame, as_ids, column, to_table
from recsys.release.runtime.query_encoder import Query
from recsys.release.runtime.retriever import Retriever
from recsys.release.runtime.timestamps import check_seconds


def queries_of(
    users: Iterable[Any] | Frame | None, events: Frame | None, *, retriever: Retriever, unknown: Unknown
) -> tuple[pa.Array, list[Query]]:
    """Return the ids of the users, and one query for each.

    Args:
        users: ids, or a frame with `user_id` and any request and profile features; None for everyone in `events`.
        events: frame with `user_id`, `item_id`, any features of events, and perhaps `timestamp`; events without a
            timestamp count in the order of the frame. None if no user has a history.
        retriever: opened release.
        unknown: `"error"` refuses users without events, `"empty"` gives them an empty history.

    Raises:
        UserError: If a user has no events, or a column or a value is none of the release's.
    """
    schema = retriever.schema
    kind = pa.type_for_alias(schema.user_id_type)
    table = None if events is None else to_table(events, "histories")
    owners = as_ids(pa.array([], kind) if table is None else column(table, "user_id", "histories"), kind, "histories")
    if users is None:
        ids, given = pc.unique(owners), pa.table({})
    else:
        ids, given = user_table(users)
        ids = as_ids(ids, kind, "users")
    names = retriever.query_encoder.names
    check_columns(given, names["request"] | names["user"], "request or profile feature")
    position = np.asarray(pc.index_in(owners, value_set=ids).cast(pa.int64()).fill_null(-1))
    counts = np.bincount(position[position >= 0], minlength=len(ids))
    if unknown == "error" and not counts.all():
        refuse_unknown(ids.filter(pa.array(counts == 0)))
    rows = [] if table is None else _events(table, position, names["history"])
    ends = np.cumsum(counts)
    others = given.to_pylist() if given.num_columns else [{} for _ in range(len(ids))]
    return ids, [
        Query(
            history=rows[end - count : end],
            user_id=user_id,
            user=_some(values, names["user"]),
            request=_some(values, names["request"]),
        )
        for user_id, values, end, count in zip(ids.to_pylist(), others, ends.tolist(), counts.tolist(), strict=True)
    ]


def _events(table: pa.Table, position: npt.NDArray[np.int64], names: set[str]) -> list[dict[str, Any]]:
    """Return the events of the users that have a position, sorted by position and time."""
    for name in table.column_names:
        if name != "user_id" and name not in names:
            raise UserError(f"histories: column '{name}' is not a feature of events{nearest(name, names)}")
    column(table, "item_id", "histories")
    order = np.arange(len(table))
    if "timestamp" in table.column_names:
        seconds = _seconds(column(table, "timestamp", "histories"))
        table = table.set_column(table.column_names.index("timestamp"), "timestamp", pa.array(seconds))
        order = np.lexsort((seconds, position))
    else:
        order = np.argsort(position, kind="stable")
    events: list[dict[str, Any]] = table.drop_columns(["user_id"]).to_pylist()
    return [events[at] for at in order[position[order] >= 0].tolist()]


def _seconds(times: pa.Array) -> npt.NDArray[np.int64]:
    if pa.types.is_integer(times.type):
        seconds = np.asarray(times.cast(pa.int64()))
        check_seconds(int(seconds.max(initial=0)), "histories: column 'timestamp'")
        return seconds
    if pa.types.is_date(times.type):
        return np.asarray(times.cast(pa.date32()).cast(pa.int32()).cast(pa.int64())) * 86_400
    if pa.types.is_timestamp(times.type):
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[times.type.unit]
        return np.asarray(times.cast(pa.int64())).astype(np.int64) // per_second
    raise UserError(f"histories: column 'timestamp' holds {times.type}, expected integer seconds, dates or times")


def _some(values: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names and value is not None}
