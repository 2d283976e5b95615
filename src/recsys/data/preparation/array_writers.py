"""Writers of the arrays of a prepared data set, from results that stream by in their final order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.core.progress import track
from recsys.core.schema import Feature
from recsys.core.types import Int64Array
from recsys.data.exposures import FOLDER as EXPOSURES
from recsys.data.preparation.column_writers import ColumnWriters, finished
from recsys.data.preparation.engines import Session
from recsys.data.preparation.feature_drafts import Draft
from recsys.data.preparation.job import PreparationJob
from recsys.data.preparation.shard_writers import write_shards
from recsys.data.preparation.vocabulary import PARTS, Entities
from recsys.data.shards import ArrayFolder, Shard, Shards

# Rows of a group in the files of ids.
_GROUP = 1 << 20


def write_users(session: Session, users: Entities, *, folder: Path) -> None:
    """Write the ids of users, and the bounds of each user's parts."""
    last = np.zeros(1, np.int64)
    with ArrayFolder(f"{folder}/users") as arrays:
        offsets, train_end, val_end = (arrays.open(name, np.int64) for name in ("offsets", "train_end", "val_end"))
        offsets.add(last)
        for train, val, test in _write_ids(session, users, folder / "vocabularies/users.parquet"):
            ends = last + np.cumsum(train + val + test)
            offsets.add(ends)
            train_end.add(ends - test - val)
            val_end.add(ends - test)
            last = ends[-1:]


def write_items(session: Session, items: Entities, *, folder: Path) -> None:
    """Write the ids of items and their numbers of training and validation events. No item has features yet."""
    with ArrayFolder(f"{folder}/items") as arrays:
        counts = [arrays.open(f"{part}_count", np.int64) for part in ("train", "val")]
        has = arrays.open("has_features", np.bool_)
        nobody = [np.zeros(items.first, np.int64)] * 3
        for train, val, _ in chain([nobody], _write_ids(session, items, folder / "vocabularies/items.parquet")):
            for array, values in zip(counts, (train, val), strict=True):
                array.add(values)
            has.add(np.zeros(len(train), bool))


def _write_ids(session: Session, entities: Entities, file: Path) -> Iterator[list[Int64Array]]:
    """Write the outside ids and yield, for blocks of them, the numbers of events in each part."""
    key = entities.key
    table = entities.table.select(key, *PARTS)
    with pq.ParquetWriter(file, table.select(key).schema().to_pyarrow()) as writer:
        for block in _blocks(session.stream(table), _GROUP):
            writer.write_table(block.select([key]))
            yield [np.asarray(block[name]) for name in PARTS]


def _blocks(batches: Iterable[pa.RecordBatch], num_rows: int) -> Iterator[pa.Table]:
    """Yield the rows in tables of `num_rows`, however the engine cuts them."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        while sum(map(len, held)) >= num_rows:
            table = pa.Table.from_batches(held)
            yield table.slice(0, num_rows).combine_chunks()
            held = table.slice(num_rows).to_batches()
    if held:
        yield pa.Table.from_batches(held).combine_chunks()


def write_entities(
    session: Session, ordered: ir.Table, *, drafts: Mapping[str, Draft], entities: Entities, folder: Path
) -> list[Feature]:
    """Write the columns of users or items, one row for each dense index. Rows before the first index are missing.

    Args:
        session: open engine.
        ordered: columns of features, and `trained`, whether the entity has training events.
        drafts: features by the names of their columns.
        entities: the users or items.
        folder: folder of the columns.
    """
    schema, total = ordered.schema().to_pyarrow(), len(entities)
    missing = pa.record_batch([pa.nulls(entities.first, field.type) for field in schema], schema=schema)
    stream = track(session.stream(ordered), f"writing {folder.name}", total=total, unit="rows", size=len)
    with ArrayFolder(str(folder)) as arrays:
        has = arrays.open("has_features", np.bool_) if folder.name == "items" else None
        writers = ColumnWriters(drafts, arrays)
        for batch in chain([missing], stream):
            found = writers.add(batch, np.asarray(batch["trained"].fill_null(False)))
            if has is not None:
                has.add(found)
    shard = Shard(folder.name, 0, entities.first + total)
    return finished(drafts.values(), Shards(str(folder.parent), tuple(arrays.names), (shard,)))[0]


def write_exposures(
    job: PreparationJob, session: Session, *, coded: ir.Table, users: Entities, per_second: int, folder: Path
) -> None:
    """Write items and times of the exposures, ordered by user and time, and each user's bounds."""
    inner = folder / EXPOSURES
    inner.mkdir()
    counted = coded.group_by("user_id_idx").aggregate(n=coded.count().cast("int64"))
    lengths = users.table.left_join(counted, "user_id_idx").order_by("user_id_idx")
    last = np.zeros(1, np.int64)
    with ArrayFolder(str(inner)) as arrays:
        offsets = arrays.open("offsets", np.int64)
        offsets.add(last)
        for batch in session.stream(lengths.select(n=lengths.n.fill_null(0))):
            ends = last + np.cumsum(np.asarray(batch["n"]))
            offsets.add(ends)
            last = np.append(last, ends)[-1:]
    write_shards(job, session, coded=coded, drafts={}, num_rows=int(last[0]), per_second=per_second, folder=inner)
