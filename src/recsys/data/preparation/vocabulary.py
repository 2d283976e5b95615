"""Vocabularies of users, items and the values of categorical features, counted by the engine.

Values of features are counted in rows that occur in training events, so that a model learns nothing from later events.
The most frequent values come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.core.types import Int64Array
from recsys.data.preparation.engines import Session, first_row
from recsys.data.preparation.splits import TEST, TRAIN, VAL

_PARTS = {"train": TRAIN, "val": VAL, "test": TEST}


@dataclass(frozen=True, kw_only=True)
class Entities:
    """Users or items in the order of their dense index, with their number of events in each part; each [R].

    Attributes:
        ids: outside ids.
        train: number of training events.
        val: number of validation events.
        test: number of test events.
        in_table: whether the entity has a row in its own table.
        first: dense index of the first entity.
    """

    ids: pa.Array
    train: Int64Array
    val: Int64Array
    test: Int64Array
    in_table: npt.NDArray[np.bool_]
    first: int

    def __len__(self) -> int:
        return len(self.ids)

    def known_first(self, known: pa.Array) -> Entities:
        """Return the entities with those of `known` first, in its order, whether they occur or not."""
        known = known.cast(self.ids.type)
        place = np.asarray(pc.index_in(known, value_set=self.ids).cast(pa.int64()).fill_null(len(self)))
        rows = np.concatenate([place, np.setdiff1d(np.arange(len(self)), place)])
        counts = {name: np.append(getattr(self, name), 0)[rows] for name in _PARTS}
        ids = pa.concat_arrays([known, self.ids.take(pa.array(rows[len(place) :]))])
        return Entities(ids=ids, **counts, in_table=np.append(self.in_table, False)[rows], first=self.first)

    def join_table(self, session: Session, key: str) -> ir.Table:
        """Return the table `key, <key>_idx, <key>_trained` for joins."""
        index = np.arange(self.first, self.first + len(self), dtype=np.int64)
        return session.add(pa.table({f"{key}_idx": index, f"{key}_trained": self.train > 0, key: self.ids}))


def collect_users(session: Session, events: ir.Table, *, table: ir.Table | None) -> Entities:
    """Return all users of the events and of the users table, ordered by id."""
    counted = _count(events, table, key="user_id")
    return _fetch(session, counted.order_by("user_id"), key="user_id", first=0)


def collect_items(session: Session, events: ir.Table, *, table: ir.Table | None) -> Entities:
    """Return all items in four runs: trained, seen in validation, only in the items table, only in test events.

    The first run is ordered by number of training events, the second by number of validation events, ties and the
    other runs by id.
    """
    counted = _count(events, table, key="item_id")
    run = ibis.cases((counted.train > 0, 0), (counted.val > 0, 1), (counted.in_table > 0, 2), else_=3)
    frequency = ibis.cases((counted.train > 0, counted.train), else_=counted.val)
    ordered = counted.order_by([run, frequency.desc(), counted.item_id])
    return _fetch(session, ordered, key="item_id", first=1)


def _count(events: ir.Table, table: ir.Table | None, *, key: str) -> ir.Table:
    flags = [(events.part == code).cast("int64").name(name) for name, code in _PARTS.items()]
    counted = events.select(events[key], *flags, ibis.literal(0, "int64").name("in_table"))
    if table is not None:
        zeros = [ibis.literal(0, "int64").name(name) for name in _PARTS]
        counted = counted.union(table.select(table[key], *zeros, ibis.literal(1, "int64").name("in_table")))
    return counted.group_by(key).aggregate(
        **{name: counted[name].sum().cast("int64") for name in _PARTS}, in_table=counted.in_table.max()
    )


def _fetch(session: Session, ordered: ir.Table, *, key: str, first: int) -> Entities:
    table = session.collect(ordered)
    train, val, test = (np.asarray(table[name]) for name in _PARTS)
    in_table = np.asarray(table["in_table"]) > 0
    return Entities(ids=_array(table[key]), train=train, val=val, test=test, in_table=in_table, first=first)


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
