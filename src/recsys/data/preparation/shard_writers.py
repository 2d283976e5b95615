"""Events and exposures in shards: each worker of an engine takes a range of users and writes a shard of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

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

_WRITTEN = pa.schema({"name": pa.string(), "first_user": pa.int64(), "num_rows": pa.int64(), "columns": pa.string()})


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
    # Several machines may prepare the same data at once, so each preparation has a folder of its own.
    own = f"{job.fingerprint}/shards/{uuid.uuid4().hex[:8]}/{folder.name}"
    address = rooted(f"{session.output or session.scratch}/{own}")
    order = [name for name in ("user_id_idx", "part", "time", "shard", "row") if name in coded.columns]
    write = _WriteShard(address, job.time_resolution, per_second, dict(drafts))
    what = f"writing {folder.name}"
    table = session.write_ranges(coded, order, write=write, schema=_WRITTEN, what=what, num_rows=num_rows)
    written = [row for row in table.sort_by("first_user").to_pylist() if row["num_rows"]]
    # Without rows one empty shard has the columns.
    written = written or pa.Table.from_batches(write(iter(()))).to_pylist()
    columns = tuple(written[0]["columns"].split("/"))
    found = tuple(Shard(row["name"], row["first_user"], row["num_rows"]) for row in written)
    shards = Shards(address, columns, found)
    assert int(shards.bounds()[-1]) == num_rows, (shards.bounds()[-1], num_rows)
    shards.remove_others()
    features, shards = finished(drafts.values(), shards, session.for_each)
    if session.output is None:
        shards.join(folder, move=True)
    else:
        shards.save(folder / FILE)
    return features


@dataclass(frozen=True)
class _WriteShard:
    """Function of the batches of one range of users. It runs on a worker."""

    address: str
    resolution: TimeResolution
    per_second: int
    drafts: dict[str, Draft]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        filled = (batch for batch in batches if len(batch))
        first = list(next(zip(filled, strict=False), ()))
        first_user = first[0]["user_id_idx"][0].as_py() if first else 0
        # A repeated task writes another folder, and only the one that is returned counts.
        name = f"{first_user:012}-{uuid.uuid4().hex[:8]}"
        with ArrayFolder(f"{self.address}/{name}") as arrays:
            item_idx, times = arrays.open("item_idx", np.int32), arrays.open("time", np.int64)
            weights = None
            writers = ColumnWriters(self.drafts, arrays)
            for batch in chain(first, filled):
                item_idx.add(np.asarray(batch["item_id_idx"]))
                times.add(times_of(self.resolution, np.asarray(batch["time"]), per_second=self.per_second))
                if "weight" in batch.schema.names:
                    weights = weights or arrays.open("weight", np.float32)
                    weights.add(np.asarray(batch["weight"]))
                if self.drafts:
                    writers.add(batch, np.asarray(batch["part"]) == TRAIN)
        columns = "/".join(arrays.names)
        yield pa.record_batch([[name], [first_user], [item_idx.num_rows], [columns]], schema=_WRITTEN)
