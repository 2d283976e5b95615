"""Writers of the arrays of a prepared data set, from results that stream by in their final order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.core.schema import Feature
from recsys.core.types import Int64Array
from recsys.data.exposures import FOLDER as EXPOSURES
from recsys.data.preparation.column_writers import ColumnWriters
from recsys.data.preparation.engines import Session
from recsys.data.preparation.feature_drafts import Draft
from recsys.data.preparation.job import PreparationJob
from recsys.data.preparation.shard_writers import (
    opened_range,
    shards_address,
    write_shards,
    written_range,
    written_shards,
)
from recsys.data.preparation.vocabulary import PARTS, Entities
from recsys.data.shards import ArrayFolder, remove

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
    job: PreparationJob,
    session: Session,
    table: ir.Table,
    *,
    drafts: Mapping[str, Draft],
    entities: Entities,
    folder: Path,
) -> list[Feature]:
    """Let the workers write the columns of users or items, and join them in `folder`. Return the encoded features.

    There is one row for each dense index. Rows before the first index are missing.

    Args:
        job: the preparation.
        session: open engine.
        table: dense index, columns of features, and `trained`, whether the entity has training events.
        drafts: features by the names of their columns.
        entities: the users or items.
        folder: folder of the columns.
    """
    index, schema = f"{entities.key}_idx", table.schema().to_pyarrow()
    nulls = [pa.nulls(entities.first, field.type) for field in schema if field.name != index]
    missing = pa.record_batch(
        [pa.array(range(entities.first), pa.int64()), *nulls],
        names=[index, *(name for name in schema.names if name != index)],
    )
    write = _WriteEntities(shards_address(job, session, folder), index, dict(drafts), missing, folder.name == "items")
    num_rows = entities.first + len(entities)
    features, shards = written_shards(session, table, order=[index], write=write, drafts=drafts, num_rows=num_rows)
    shards.join(folder, move=True)
    remove(shards.address)
    return features


@dataclass(frozen=True)
class _WriteEntities:
    """Function of the batches of one range of users or items. It runs on a worker."""

    address: str
    index: str
    drafts: dict[str, Draft]
    missing: pa.RecordBatch
    marks_features: bool

    @property
    def nothing(self) -> Sequence[pa.RecordBatch]:
        return [self.missing]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        name, first, filled = opened_range(batches, self.index)
        lead = [self.missing] if first == len(self.missing) else []
        num_rows = 0
        with ArrayFolder(f"{self.address}/{name}") as arrays:
            has = arrays.open("has_features", np.bool_) if self.marks_features else None
            writers = ColumnWriters(self.drafts, arrays)
            for batch in chain(lead, filled):
                found = writers.add(batch, np.asarray(batch["trained"].fill_null(False)))
                num_rows += len(batch)
                if has is not None:
                    has.add(found)
        yield written_range(name, first, num_rows, arrays)


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
