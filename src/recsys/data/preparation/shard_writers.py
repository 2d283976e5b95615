"""Rows in shards: each worker of an engine takes a range of users or items and writes a shard of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import ClassVar, Protocol

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from recsys.core.schema import Feature, TimeResolution
from recsys.data.preparation.column_writers import ColumnWriters, finished
from recsys.data.preparation.engines import Session
from recsys.data.preparation.event_times import times_of
from recsys.data.preparation.feature_drafts import Draft
from recsys.data.preparation.job import PreparationJob
from recsys.data.preparation.splits import TRAIN
from recsys.data.shards import FILE, ArrayFolder, Shard, Shards, rooted

# What a worker returns of a shard: its folder, the first index, the number of rows, and the names of its arrays.
WRITTEN = pa.schema({"name": pa.string(), "first": pa.int64(), "num_rows": pa.int64(), "columns": pa.string()})


def write_shards(
    job: PreparationJob,
    session: Session,
    *,
    coded: ir.Table,
    drafts: Mapping[str, Draft],
    num_rows: int,
    per_second: int,
    folder: Path,
) -> list[Feature]:
    """Let the workers write events or exposures, and return the encoded features.

    Shards stay in the output of the engine, and `folder` gets their list. Without an output it gets the joined shards.

    Args:
        job: the preparation.
        session: open engine.
        coded: rows with dense users and items, `time`, `shard`, `row`, for events also `part` and columns of features.
        drafts: features by the names of their columns.
        num_rows: number of the rows.
        per_second: units of `time` in a second.
        folder: folder of the events or exposures in the data set.
    """
    order = [name for name in ("user_id_idx", "part", "time", "shard", "row") if name in coded.columns]
    address = shards_address(job, session, folder)
    write = _WriteShard(address, job.time_resolution, per_second, dict(drafts))
    features, shards = written_shards(session, coded, order=order, write=write, drafts=drafts, num_rows=num_rows)
    if session.output is None:
        shards.join(folder, move=True)
    else:
        shards.save(folder / FILE)
    return features


def shards_address(job: PreparationJob, session: Session, folder: Path) -> str:
    """Return a new folder or address where workers write what the folder of a data set holds.

    Several machines may prepare the same data at once, so each preparation has a folder of its own.
    """
    own = f"{job.fingerprint}/shards/{uuid.uuid4().hex[:8]}/{folder.name}"
    return rooted(f"{session.output or session.scratch}/{own}")


class WriteRange(Protocol):
    """Writes the rows of one range as a shard and returns a row of `WRITTEN`. It runs on a worker.

    Attributes:
        address: folder of the shards.
        nothing: rows of the shard if there are no rows.
    """

    @property
    def address(self) -> str: ...  # noqa: D102
    @property
    def nothing(self) -> Sequence[pa.RecordBatch]: ...  # noqa: D102
    def __call__(self, batches: Iterator[pa.RecordBatch], /) -> Iterator[pa.RecordBatch]: ...  # noqa: D102


def written_shards(
    session: Session,
    table: ir.Table,
    *,
    order: Sequence[str],
    write: WriteRange,
    drafts: Mapping[str, Draft],
    num_rows: int,
) -> tuple[list[Feature], Shards]:
    """Let the workers write the rows in the order of `order`, and return the encoded features and the shards.

    Args:
        session: open engine.
        table: rows to write.
        order: columns that order the rows; the first one cuts the ranges.
        write: writes a range.
        drafts: features by the names of their columns.
        num_rows: number of rows that all shards have.
    """
    what = f"writing {write.address.rpartition('/')[2]}"
    found = session.write_ranges(table, order, write=write, schema=WRITTEN, what=what, num_rows=num_rows)
    written = [row for row in found.sort_by("first").to_pylist() if row["num_rows"]]
    # Without rows one shard has the columns.
    written = written or pa.Table.from_batches(write(iter(write.nothing))).to_pylist()
    columns = tuple(written[0]["columns"].split("/"))
    shards = Shards(write.address, columns, tuple(Shard(row["name"], row["first"], row["num_rows"]) for row in written))
    assert int(shards.bounds()[-1]) == num_rows, (shards.bounds()[-1], num_rows)
    shards.remove_others()
    return finished(drafts.values(), shards, session.for_each)


def opened_range(batches: Iterator[pa.RecordBatch], name: str) -> tuple[str, int | None, Iterator[pa.RecordBatch]]:
    """Return a name for the shard of a range, the first value of the column `name`, and the batches that have rows.

    The value is None for a range without rows. A repeated task gets another name, and only the one that is returned
    counts.
    """
    filled = (batch for batch in batches if len(batch))
    begin = list(next(zip(filled, strict=False), ()))
    first: int | None = begin[0][name][0].as_py() if begin else None
    return f"{first or 0:012}-{uuid.uuid4().hex[:8]}", first, chain(begin, filled)


@dataclass(frozen=True)
class _WriteShard:
    """Function of the batches of one range of users. It runs on a worker."""

    address: str
    resolution: TimeResolution
    per_second: int
    drafts: dict[str, Draft]

    nothing: ClassVar[tuple[()]] = ()

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        name, first_user, filled = opened_range(batches, "user_id_idx")
        with ArrayFolder(f"{self.address}/{name}") as arrays:
            item_idx, times = arrays.open("item_idx", np.int32), arrays.open("time", np.int64)
            weights = None
            writers = ColumnWriters(self.drafts, arrays)
            for batch in filled:
                item_idx.add(np.asarray(batch["item_id_idx"]))
                times.add(times_of(self.resolution, np.asarray(batch["time"]), per_second=self.per_second))
                if "weight" in batch.schema.names:
                    weights = weights or arrays.open("weight", np.float32)
                    weights.add(np.asarray(batch["weight"]))
                if self.drafts:
                    writers.add(batch, np.asarray(batch["part"]) == TRAIN)
        yield written_range(name, first_user, item_idx.num_rows, arrays)


def written_range(name: str, first: int | None, num_rows: int, arrays: ArrayFolder) -> pa.RecordBatch:
    """Return the row of a shard that a worker has written."""
    return pa.record_batch([[name], [first or 0], [num_rows], ["/".join(arrays.names)]], schema=WRITTEN)
