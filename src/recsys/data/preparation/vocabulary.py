"""Vocabularies of users, items and the values of categorical features, counted by the engine.

Values of features are counted in rows that occur in training events, so that a model learns nothing from later events.
The most frequent values come first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.preparation.engines import Session, first_row
from recsys.data.preparation.splits import TEST, TRAIN, VAL

PARTS = {"train": TRAIN, "val": VAL, "test": TEST}


@dataclass(frozen=True, kw_only=True)
class Entities:
    """Users or items in the order of their dense index. The engine holds them.

    Attributes:
        table: ids, dense indices `<key>_idx`, numbers of events `train`, `val`, `test`, and `in_table`: 1 for a row in
            their own table.
        key: column of the ids.
        first: dense index of the first entity.
        sums: numbers of events in each part, and numbers of entities: `all`, `trained` (with training events), `seen`
            (with training or validation events), `known` (seen or in their table), `joined` (events and a row).
    """

    table: ir.Table
    key: str
    first: int
    sums: Mapping[str, int]

    def __len__(self) -> int:
        return self.sums["all"]

    @property
    def num_events(self) -> int:
        """Number of events in all parts."""
        return sum(self.sums[part] for part in PARTS)

    @property
    def join_table(self) -> ir.Table:
        """The table `key, <key>_idx, trained` for joins."""
        return self.table.select(self.key, f"{self.key}_idx", trained=self.table.train > 0)


def number_users(session: Session, events: ir.Table, *, table: ir.Table | None, known: pa.Array | None) -> Entities:
    """Return all users of the events and of the users table, ordered by id.

    Args:
        session: open engine.
        events: events with their parts.
        table: users table.
        known: ids that come first, in this order, whether they occur or not.
    """
    counted = _count(events, table, key="user_id")
    return _numbered(session, counted, key="user_id", first=0, known=known, order=lambda users: [users.user_id])


def number_items(session: Session, events: ir.Table, *, table: ir.Table | None, known: pa.Array | None) -> Entities:
    """Return all items in four runs: trained, seen in validation, only in the items table, only in test events.

    The first run is ordered by number of training events, the second by number of validation events, ties and the
    other runs by id. The arguments are those of `number_users`.
    """

    def order(items: ir.Table) -> list[ir.Value]:
        run = ibis.cases((items.train > 0, 0), (items.val > 0, 1), (items.in_table > 0, 2), else_=3)
        return [run, ibis.cases((items.train > 0, items.train), else_=items.val).desc(), items.item_id]

    counted = _count(events, table, key="item_id")
    return _numbered(session, counted, key="item_id", first=1, known=known, order=order)


def _count(events: ir.Table, table: ir.Table | None, *, key: str) -> ir.Table:
    flags = [(events.part == code).cast("int64").name(name) for name, code in PARTS.items()]
    counted = events.select(events[key], *flags, ibis.literal(0, "int64").name("in_table"))
    if table is not None:
        zeros = [ibis.literal(0, "int64").name(name) for name in PARTS]
        counted = counted.union(table.select(table[key], *zeros, ibis.literal(1, "int64").name("in_table")))
    return counted.group_by(key).aggregate(
        **{name: counted[name].sum().cast("int64") for name in PARTS}, in_table=counted.in_table.max()
    )


def _numbered(
    session: Session,
    counted: ir.Table,
    *,
    key: str,
    first: int,
    known: pa.Array | None,
    order: Callable[[ir.Table], list[ir.Value]],
) -> Entities:
    keys = order(counted)
    if known is not None:
        ids = known.cast(counted.schema().to_pyarrow().field(key).type)
        places = session.add(pa.table({"known_id": ids, "place": np.arange(len(ids))}))
        joined = counted.outer_join(places, counted[key] == places.known_id)
        numbers = {name: joined[name].fill_null(0) for name in (*PARTS, "in_table")}
        place = joined.place.fill_null(len(ids))
        counted = joined.select(ibis.coalesce(joined[key], joined.known_id).name(key), **numbers, place=place)
        keys = [counted.place, *order(counted)]
    ordered = counted.order_by(keys).select(key, *PARTS, "in_table")
    numbered = session.number(ordered, f"{key}_idx", first=first)
    seen, is_listed = numbered.train + numbered.val > 0, numbered.in_table > 0
    flags = {
        "trained": numbered.train > 0,
        "seen": seen,
        "known": seen | is_listed,
        "joined": (seen | (numbered.test > 0)) & is_listed,
    }
    sums = {name: value.cast("int64").sum() for name, value in flags.items()}
    sums |= {name: numbered[name].sum() for name in PARTS}
    found = first_row(session, numbered.aggregate(**sums, all=numbered.count()))
    return Entities(table=numbered, key=key, first=first, sums={name: int(n or 0) for name, n in found.items()})


def collect_values(session: Session, rows: ir.Table, *, column: str, is_bag: bool) -> pa.Array:
    """Return the distinct values of a feature in `rows`, the most frequent first, ties by value, without nulls."""
    values = rows.select(value=rows[column])
    if is_bag:
        values = values.filter(values.value.notnull()).select(value=ibis._.value.unique()).unnest("value")
    values = values.filter(values.value.notnull())
    counted = values.group_by("value").aggregate(n=ibis._.count())
    ordered = counted.order_by([counted.n.desc(), counted.value]).select("value")
    found = _array(session.collect(ordered)["value"])
    return found.cast(pa.int64()) if pa.types.is_integer(found.type) else found


def keep_core(session: Session, events: ir.Table, *, min_user_events: int, min_item_events: int) -> ir.Table:
    """Return the largest set of events in which every user and item has its minimum number of events (k-core)."""
    pairs = session.keep(events.group_by("user_id", "item_id").aggregate(n=events.count()))
    num_pairs = _length(session, pairs)
    while True:
        kept = pairs
        for key, minimum in (("user_id", min_user_events), ("item_id", min_item_events)):
            if minimum > 1:
                totals = kept.group_by(key).aggregate(total=kept.n.sum())
                kept = kept.semi_join(totals.filter(totals.total >= minimum), key)
        kept = session.keep(kept)
        num_kept = _length(session, kept)
        if num_kept == num_pairs:
            return events.semi_join(kept, ["user_id", "item_id"])
        pairs, num_pairs = kept, num_kept


def write_values(values: pa.Array, file: Path, *, name: str) -> None:
    """Write a vocabulary as a Parquet file of one column."""
    pq.write_table(pa.table({name: values}), file)


def _length(session: Session, table: ir.Table) -> int:
    return int(first_row(session, table.aggregate(n=table.count()))["n"])


def _array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
