"""Vocabularies: users, items and the values of categorical features, counted by the engine.

What a model may know comes from training events alone: values of features count where training events touch their
row, and the most frequent come first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.core.columns import distinct
from recsys.data.encoding import as_type, plain
from recsys.data.preparation.engines import Read, Session
from recsys.data.preparation.splits import TEST, TRAIN, VAL


@dataclass(frozen=True)
class Entities:
    """Users or items in the order of their dense index, with their number of events in each part; each [R].

    Attributes:
        ids: outside ids.
        listed: whether the entity has a row in its own table.
        first: dense index of the first.
    """

    ids: pa.Array
    train: npt.NDArray[np.int64]
    val: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    listed: npt.NDArray[np.bool_]
    first: int

    def __len__(self) -> int:
        return len(self.ids)

    def join_table(self, session: Session, key: str, folder: Path) -> ir.Table:
        """Table `key, <key>_idx, <key>_trained` for joins, through a file in `folder`."""
        file = folder / f"{key}.parquet"
        index = np.arange(self.first, self.first + len(self), dtype=np.int64)
        pq.write_table(pa.table({"id": self.ids, "idx": index, "trained": self.train > 0}), file)
        names = {f"{key}_idx": Read("idx"), f"{key}_trained": Read("trained"), key: Read("id")}
        return session.read([str(file)], names).drop("shard", "row")


def collect_users(session: Session, events: ir.Table, listed: ir.Table | None) -> Entities:
    """All users of events and of the users table, by id."""
    counted = _count(events, listed, "user_id")
    return _fetch(session, counted.order_by("user_id"), "user_id", 0)


def collect_items(session: Session, events: ir.Table, listed: ir.Table | None) -> Entities:
    """All items in four runs: trained, seen in validation, only in the table, only in test events.

    The first by number of training events, the second by number of validation events, then all by id.
    """
    counted = _count(events, listed, "item_id")
    run = ibis.cases((counted.train > 0, 0), (counted.val > 0, 1), (counted.listed > 0, 2), else_=3)
    frequency = ibis.cases((counted.train > 0, counted.train), else_=counted.val)
    return _fetch(session, counted.order_by([run, frequency.desc(), counted.item_id]), "item_id", 1)


def _count(events: ir.Table, listed: ir.Table | None, key: str) -> ir.Table:
    flags = [(events.part == code).cast("int64").name(name) for name, code in _PARTS.items()]
    told = events.select(events[key], *flags, ibis.literal(0, "int64").name("listed"))
    if listed is not None:
        zeros = [ibis.literal(0, "int64").name(name) for name in _PARTS]
        told = told.union(listed.select(listed[key], *zeros, ibis.literal(1, "int64").name("listed")))
    return told.group_by(key).aggregate(
        **{name: told[name].sum().cast("int64") for name in _PARTS}, listed=told.listed.max()
    )


def ordered_items(
    ids: pa.Array,
    train: npt.NDArray[np.int64],
    val: npt.NDArray[np.int64],
    test: npt.NDArray[np.int64],
    listed: npt.NDArray[np.bool_],
) -> tuple[Entities, npt.NDArray[np.int64]]:
    """Items in the order of `collect_items`, from their counts, and the dense index of each (0: it is nowhere).

    Args:
        ids: outside ids [R], in any order.
        train: number of training events [R]; `val`, `test` likewise.
        val: see `train`.
        test: see `train`.
        listed: whether the item has a row in the items table [R].
    """
    by_id = np.empty(len(ids), np.int64)
    by_id[np.asarray(pc.sort_indices(ids)).astype(np.int64)] = np.arange(len(ids))
    run = np.select([train > 0, val > 0, listed, test > 0], [0, 1, 2, 3], 4)
    order = np.lexsort((by_id, -np.where(train > 0, train, val), run))
    order = order[: int((run < 4).sum())]
    index = np.zeros(len(ids), np.int64)
    index[order] = np.arange(1, len(order) + 1)
    return Entities(ids.take(pa.array(order)), train[order], val[order], test[order], listed[order], 1), index


_PARTS = {"train": TRAIN, "val": VAL, "test": TEST}


def _fetch(session: Session, ordered: ir.Table, key: str, first: int) -> Entities:
    table = pa.Table.from_batches(session.stream(ordered), ordered.schema().to_pyarrow()).combine_chunks()
    train, val, test = (np.asarray(table[name]) for name in _PARTS)
    return Entities(_one(table[key]), train, val, test, np.asarray(table["listed"]) > 0, first)


def collect_values(session: Session, rows: ir.Table, column: str, is_bag: bool) -> pa.Array:
    """Distinct values of a feature in `rows`, the most frequent first, equal counts by value; nulls left out."""
    values = rows.select(value=rows[column])
    if is_bag:
        values = values.filter(values.value.notnull()).select(value=ibis._.value.unique()).unnest("value")
    values = values.filter(values.value.notnull())
    counted = values.group_by("value").aggregate(n=ibis._.count())
    ordered = counted.order_by([counted.n.desc(), counted.value]).select("value")
    table = pa.Table.from_batches(session.stream(ordered), ordered.schema().to_pyarrow())
    values_found = _one(table["value"])
    return values_found.cast(pa.int64()) if pa.types.is_integer(values_found.type) else values_found


def frequent_values(values: pa.Array) -> pa.Array:
    """The same of values, or of lists of them, that are in memory."""
    if pa.types.is_nested(values.type):
        _, codes, found = distinct_in_lists(values)
    else:
        coded = values.drop_null().dictionary_encode()
        codes, found = np.asarray(coded.indices), coded.dictionary
    if pa.types.is_integer(found.type):
        found = found.cast(pa.int64())
    return by_frequency(found, np.bincount(codes, minlength=len(found)))[0]


def by_frequency(values: pa.Array, counts: npt.NDArray[np.int64]) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Those of the values that occur, the most frequent first, equal counts by value; and their places."""
    table = pa.table({"value": values, "n": counts, "place": np.arange(len(values))}).filter(pa.array(counts > 0))
    ordered = table.sort_by([("n", "descending"), ("value", "ascending")])
    return plain(ordered["value"]), np.asarray(ordered["place"])


def distinct_in_lists(lists: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], pa.Array]:
    """Pairs of a row and the place of a value that its list holds, in order, each once; and the values in order."""
    rows = np.asarray(pc.list_parent_indices(lists)).astype(np.int64)
    flat = plain(pc.list_flatten(lists))
    coded = flat.drop_null().dictionary_encode()
    order = np.asarray(pc.sort_indices(coded.dictionary)).astype(np.int64)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    size = max(len(order), 1)
    pairs = distinct(rows[np.asarray(pc.is_valid(flat))] * size + place[np.asarray(coded.indices)])
    return pairs // size, pairs % size, coded.dictionary.take(pa.array(order))


def sorted_lists(lists: pa.Array, without: pa.Array) -> pa.Array:
    """Each list's distinct values in order, without nulls and those of `without`."""
    rows, places, values = distinct_in_lists(lists)
    values = as_type(values, without.type)
    is_left = ~np.asarray(pc.is_in(values, without))[places]
    rows, places = rows[is_left], places[is_left]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(lists)))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values.take(pa.array(places)))


def keep_core(session: Session, events: ir.Table, min_user_events: int, min_item_events: int) -> ir.Table:
    """Events of users and items that have at least so many events, counted among the events that are kept."""
    pairs = session.keep(events.group_by("user_id", "item_id").aggregate(n=events.count()))
    num_pairs = _length(session, pairs)
    while True:
        kept = pairs
        for key, least in (("user_id", min_user_events), ("item_id", min_item_events)):
            if least > 1:
                totals = kept.group_by(key).aggregate(total=kept.n.sum())
                kept = kept.semi_join(totals.filter(totals.total >= least), key)
        kept = session.keep(kept)
        num_kept = _length(session, kept)
        if num_kept == num_pairs:
            return events.semi_join(kept, ["user_id", "item_id"])
        pairs, num_pairs = kept, num_kept


def _length(session: Session, table: ir.Table) -> int:
    return sum(
        int(value) for batch in session.stream(table.aggregate(n=table.count())) for value in batch["n"].to_pylist()
    )


def _one(column: pa.ChunkedArray) -> pa.Array:
    chunks: Sequence[pa.Array] = column.chunks
    return pa.concat_arrays(chunks) if chunks else pa.array([], column.type)


def write_values(values: pa.Array, name: str, file: Path) -> None:
    """Write a vocabulary file: one column."""
    pq.write_table(pa.table({name: values}), file)
