"""Events that the workers of a distributed engine write: each takes a range of users and writes a shard of it.

A number is standardised by mean and deviation of all events. So workers write it raw first, then summarise blocks of
the whole column, the same blocks as in one process, and then encode their shard.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys.core.columns import Dense, Ragged
from recsys.core.errors import UserError
from recsys.core.schema import Feature, TimeResolution
from recsys.core.types import Float64Array
from recsys.data.encoding import FeatureEncoder, to_floats
from recsys.data.preparation.column_writers import BLOCK, moments
from recsys.data.preparation.engines import DistributedSession
from recsys.data.preparation.event_times import times_of
from recsys.data.preparation.feature_drafts import Draft
from recsys.data.preparation.job import PreparationJob
from recsys.data.preparation.splits import TRAIN
from recsys.data.shards import Shard, Shards, open_address, read_header, read_rows, write_header

_WRITTEN = pa.schema({"name": pa.string(), "first_user": pa.int64(), "num_rows": pa.int64(), "columns": pa.string()})
_RAW, _TRAINED = ".raw", "trained"


def write_shards(
    job: PreparationJob,
    session: DistributedSession,
    *,
    coded: ir.Table,
    drafts: Mapping[str, Draft],
    per_second: int,
    address: str,
) -> tuple[list[Feature], Shards]:
    """Let the workers write events or exposures, and return the encoded features.

    Args:
        job: the preparation.
        session: open engine.
        coded: rows with dense users and items, `time`, `shard`, `row`, for events also `part` and columns of features.
        drafts: features by the names of their columns.
        per_second: units of `time` in a second.
        address: folder of the shards.

    Raises:
        UserError: If this process cannot read what the workers wrote.
    """
    order = [name for name in ("user_id_idx", "part", "time", "shard", "row") if name in coded.columns]
    write = _WriteShard(address, job.time_resolution, per_second, dict(drafts))
    written = session.write_ranges(coded, order, write=write, schema=_WRITTEN).sort_by("first_user").to_pylist()
    columns = tuple(written[0].pop("columns").split("/")) if written else ("item_idx", "time")
    found = tuple(Shard(row["name"], row["first_user"], row["num_rows"]) for row in written)
    shards = Shards(address, columns, found)
    for shard in shards.shards:
        _check(shards, shard)
    shards.remove_others()
    features = [_finished(session, draft, shards) for draft in drafts.values()]
    kept = tuple(name.removesuffix(_RAW) for name in columns if name != _TRAINED)
    if _TRAINED in columns:
        session.for_each(partial(_remove, shards=shards, column=_TRAINED), shards.shards)
    return features, dataclasses.replace(shards, columns=kept)


def _check(shards: Shards, shard: Shard) -> None:
    place = shards.file(shard, "item_idx")
    try:
        with open_address(place) as file:
            assert read_header(file)[0] == (shard.num_rows,)
    except OSError as error:
        raise UserError(
            f"{place}: a worker wrote it, but it cannot be read here ({error}); expected data.engine.output to be a "
            "folder that the workers and this process reach, such as s3://BUCKET/prepared"
        ) from error


class _Growing:
    """Array in a temporary file of the worker, whose number of rows is known at the end."""

    def __init__(self, dtype: npt.DTypeLike, width: tuple[int, ...]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `save`)
        self._dtype, self._width, self._num_rows = np.dtype(dtype), width, 0

    def add(self, values: npt.NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values).tobytes())
        self._num_rows += len(values)

    def save(self, address: str) -> None:
        self._file.seek(0)
        with open_address(address, "wb") as out, self._file:
            write_header(out, (self._num_rows, *self._width), self._dtype)
            shutil.copyfileobj(self._file, out, 1 << 22)


@dataclass
class _WriteShard:
    """Function of the batches of one range of users. It runs on a worker."""

    address: str
    resolution: TimeResolution
    per_second: int
    drafts: dict[str, Draft]
    _num_values: dict[str, int] = field(default_factory=dict)

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        arrays: dict[str, _Growing] = {}
        self._num_values = {}
        encoders = {name: FeatureEncoder(d.feature, d.vocabulary, folder=d.folder) for name, d in self.drafts.items()}
        first_user, num_rows = -1, 0
        for batch in batches:
            if not len(batch):
                continue
            first_user = batch["user_id_idx"][0].as_py() if first_user < 0 else first_user
            num_rows += len(batch)
            for column, values in self._columns(batch, encoders):
                if column not in arrays:
                    arrays[column] = _Growing(values.dtype, values.shape[1:])
                arrays[column].add(values)
        if not num_rows:
            return
        # A repeated task writes another folder, and only the one that is returned counts.
        name = f"{first_user:012}-{uuid.uuid4().hex[:8]}"
        for column, array in arrays.items():
            array.save(f"{self.address}/{name}/{column}.npy")
        yield pa.record_batch([[name], [first_user], [num_rows], ["/".join(arrays)]], schema=_WRITTEN)

    def _columns(
        self, batch: pa.RecordBatch, encoders: Mapping[str, FeatureEncoder]
    ) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        yield "item_idx", np.asarray(batch["item_id_idx"]).astype(np.int32)
        yield "time", times_of(self.resolution, np.asarray(batch["time"]), per_second=self.per_second)
        if "weight" in batch.schema.names:
            yield "weight", np.asarray(batch["weight"]).astype(np.float32)
        if any(_is_raw(draft) for draft in self.drafts.values()):
            yield _TRAINED, np.asarray(batch["part"]) == TRAIN
        for name, draft in self.drafts.items():
            column, values = f"feature.{draft.feature.name}", batch[name]
            if draft.feature.kind == "numeric":
                numbers = to_floats(values) / draft.divisor
                if _is_raw(draft):
                    yield column + _RAW, numbers
                    continue
                values = pa.array(numbers)
            encoded = encoders[name].encode(values)
            if isinstance(encoded, Ragged):
                before = self._num_values.get(name)
                yield f"{column}.offsets", encoded.offsets[before is not None :] + (before or 0)
                yield f"{column}.values", encoded.values
                self._num_values[name] = (before or 0) + int(encoded.offsets[-1])
            else:
                yield column, encoded.values


def _is_raw(draft: Draft) -> bool:
    return draft.feature.kind == "numeric" and not draft.is_fixed


def _finished(session: DistributedSession, draft: Draft, shards: Shards) -> Feature:
    """Return an encoded feature. If it is numeric, its raw numbers are replaced by standardised ones."""
    if not _is_raw(draft):
        return draft.feature
    column = f"feature.{draft.feature.name}"
    blocks = range(-(-int(shards.bounds()[-1]) // BLOCK))

    def over(function: Callable[[Float64Array], Any]) -> list[Any]:
        return session.for_each(partial(_on_block, shards=shards, column=column, function=function), blocks)

    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = moments(over, name=draft.feature.key)
    feature = dataclasses.replace(draft.feature, mean=mean, std=std)
    session.for_each(partial(_encode, shards=shards, column=column, feature=feature), shards.shards)
    return feature


def _on_block(block: int, *, shards: Shards, column: str, function: Callable[[Float64Array], Any]) -> Any:
    """Apply a function to the numbers of trained rows in a block of the whole column."""
    bounds, begin, end = shards.bounds(), block * BLOCK, (block + 1) * BLOCK
    numbers = []
    for at, shard in enumerate(shards.shards):
        first, last = max(begin, bounds[at]) - bounds[at], min(end, bounds[at + 1]) - bounds[at]
        if first < last:
            raw, trained = (
                read_rows(shards.file(shard, name), int(first), int(last)) for name in (column + _RAW, _TRAINED)
            )
            numbers.append(raw[trained])
    values = np.concatenate(numbers)
    with np.errstate(over="ignore", invalid="ignore"):
        return function(values[~np.isnan(values)])


def _encode(shard: Shard, *, shards: Shards, column: str, feature: Feature) -> None:
    raw, encoder = shards.file(shard, column + _RAW), FeatureEncoder(feature, None)
    with open_address(shards.file(shard, column), "wb") as out:
        write_header(out, (shard.num_rows,), np.float32)
        for begin in range(0, shard.num_rows, BLOCK):
            encoded = encoder.encode(pa.array(read_rows(raw, begin, min(begin + BLOCK, shard.num_rows))))
            assert isinstance(encoded, Dense)
            out.write(encoded.values.tobytes())
    _remove(shard, shards=shards, column=column + _RAW)


def _remove(shard: Shard, *, shards: Shards, column: str) -> None:
    shards.remove_file(shard, column)
