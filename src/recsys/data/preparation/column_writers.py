"""Writers of encoded columns. They take rows as they stream by, so memory holds one batch at a time.

A number is standardised by mean and deviation of all trained rows. So it is written raw first, then blocks of the whole
column are summarised, the same blocks on every engine, and then the column is encoded.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys.core.columns import Column, Dense, Ragged
from recsys.core.schema import MISSING, Feature
from recsys.core.types import Float64Array
from recsys.data.encoding import FeatureEncoder, to_floats
from recsys.data.preparation.engines import ForEach, here
from recsys.data.preparation.feature_drafts import Draft
from recsys.data.preparation.worker_content import to_rows
from recsys.data.shards import ArrayFolder, GrowingArray, Shard, Shards, open_address, read_rows, remove, write_header

log = logging.getLogger("recsys")

# Numbers whose median and tails are looked at, spread over the column.
_SAMPLE = 1 << 20
# If the deviation is this many times that of the numbers without their tail (this share, farthest from the median), the
# tail would leave the others no difference that a model could see.
_TAIL, _FAR = 0.025, 50.0
# Rows that are reduced or copied at a time. The same for every engine, so that sums are the same to the last bit.
BLOCK = 1 << 20
# Columns of a folder before its numbers are standardised.
_RAW, _TRAINED = ".raw", "trained"

T = TypeVar("T")


class OverBlocks(Protocol):
    """Applies a function to the numbers of trained rows in each block of a column, in order."""

    def __call__(self, function: Callable[[Float64Array], T], /) -> list[T]: ...  # noqa: D102


class ColumnWriters:
    """Writes the columns of features in the order of their rows.

    Args:
        drafts: features by the names of their columns in the batches.
        arrays: folder of the columns. Numbers whose mean and deviation are not known yet are raw there.
    """

    def __init__(self, drafts: Mapping[str, Draft], arrays: ArrayFolder) -> None:
        self._writers = {name: _ColumnWriter(draft, arrays) for name, draft in drafts.items()}
        self._trained = arrays.open(_TRAINED, np.bool_) if any(map(_is_raw, drafts.values())) else None

    def add(self, batch: pa.RecordBatch, trained: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Write the next rows. Return which of them have a value. `trained` [R]: rows of training events."""
        has = np.zeros(len(trained), bool)
        for name, writer in self._writers.items():
            has |= writer.add(batch[name])
        if self._trained is not None:
            self._trained.add(trained)
        return has


class _ColumnWriter:
    def __init__(self, draft: Draft, arrays: ArrayFolder) -> None:
        feature, column = draft.feature, f"feature.{draft.feature.name}"
        self._encoder = FeatureEncoder(feature, draft.vocabulary, folder=draft.folder)
        self._draft, self._is_raw = draft, _is_raw(draft)
        self._offsets: GrowingArray | None = None
        if feature.is_ragged:
            self._offsets = arrays.open(f"{column}.offsets", np.int64)
            self._offsets.add(np.zeros(1, np.int64))
            self._values = arrays.open(f"{column}.values", np.int32)
        elif self._is_raw:
            self._values = arrays.open(column + _RAW, np.float64)
        else:
            is_float, is_vector = feature.kind in ("numeric", "vector"), feature.kind == "vector"
            width = (feature.size,) if is_vector else ()
            self._values = arrays.open(column, np.float32 if is_float else np.int32, width)

    def add(self, values: pa.Array) -> npt.NDArray[np.bool_]:
        if self._draft.feature.kind == "numeric":
            numbers = to_floats(values) / self._draft.divisor
            if self._is_raw:
                self._values.add(numbers)
                return ~np.isnan(numbers)
            values = pa.array(numbers)
        if self._draft.feature.encoder and pa.types.is_binary(values.type):
            encoded: Column = Dense(to_rows(values, self._draft.feature.size))
        else:
            encoded = self._encoder.encode(values)
        if isinstance(encoded, Ragged):
            assert self._offsets is not None
            self._offsets.add(encoded.offsets[1:] + self._values.num_rows)
            self._values.add(encoded.values)
            return np.diff(encoded.offsets) > 0
        self._values.add(encoded.values)
        # All entries of a missing vector are nan, so its first one decides.
        first = encoded.values if encoded.values.ndim == 1 else encoded.values[:, 0]
        has: npt.NDArray[np.bool_] = first != MISSING if first.dtype.kind == "i" else ~np.isnan(first)
        return has


def _is_raw(draft: Draft) -> bool:
    return draft.feature.kind == "numeric" and not draft.is_fixed


def finished(drafts: Iterable[Draft], shards: Shards, for_each: ForEach = here) -> tuple[list[Feature], Shards]:
    """Return the encoded features and their shards, after raw numbers in them are replaced by standardised ones."""
    features = [_finished(draft, shards, for_each) for draft in drafts]
    if _TRAINED in shards.columns:
        for_each(remove, [shards.file(shard, _TRAINED) for shard in shards.shards])
    columns = tuple(name.removesuffix(_RAW) for name in shards.columns if name != _TRAINED)
    return features, dataclasses.replace(shards, columns=columns)


def _finished(draft: Draft, shards: Shards, for_each: ForEach) -> Feature:
    if not _is_raw(draft):
        return draft.feature
    column = f"feature.{draft.feature.name}"
    blocks = range(-(-int(shards.bounds()[-1]) // BLOCK))

    def over(function: Callable[[Float64Array], Any]) -> list[Any]:
        return for_each(partial(_on_block, shards=shards, column=column, function=function), blocks)

    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = moments(over, name=draft.feature.key)
    feature = dataclasses.replace(draft.feature, mean=mean, std=std)
    for_each(partial(_encode, shards=shards, column=column, feature=feature), shards.shards)
    return feature


def moments(over: OverBlocks, *, name: str) -> tuple[float, float]:
    """Return mean and deviation of the numbers of trained rows, without a tail that would hide the others.

    Args:
        over: applies a function to each block of the numbers, without those that are missing.
        name: name of the column in messages.
    """
    count = sum(over(len))
    if not count:
        return 0.0, 1.0
    mean, std = _mean_and_deviation(over, count, within=None)
    step = max(count // _SAMPLE, 1)
    sample = np.concatenate(over(lambda values: values[::step]))
    center = float(np.quantile(sample, 0.5, method="lower"))
    reach = float(np.quantile(np.abs(sample - center), 1.0 - _TAIL, method="lower"))
    num_inner = sum(over(lambda values: int((np.abs(values - center) <= reach).sum())))
    inner_mean, inner_std = _mean_and_deviation(over, num_inner, within=(center, reach))
    is_hidden = _is_spread(inner_mean, inner_std) and not std <= _FAR * inner_std
    if is_hidden:
        mean, std = inner_mean, inner_std
        log.warning(
            "%s: %d of %d numbers are far from the others, which lie from %g to %g; they are read as values at the end "
            "of the scale",
            name,
            count - num_inner,
            count,
            center - reach,
            center + reach,
        )
    # Rounding leaves a constant column a tiny deviation, which would blow up other values of the column.
    return mean if np.isfinite(mean) else center, std if _is_spread(mean, std) else 1.0


def _mean_and_deviation(over: OverBlocks, count: int, *, within: tuple[float, float] | None) -> tuple[float, float]:
    """Return the moments of the numbers, or of those within a reach of a center."""

    def inner(values: Float64Array) -> Float64Array:
        return values if within is None else values[np.abs(values - within[0]) <= within[1]]

    mean = float(sum(over(lambda values: inner(values).sum())) / count)
    return mean, float(np.sqrt(sum(over(lambda values: np.square(inner(values) - mean).sum())) / count))


def _is_spread(mean: float, std: float) -> bool:
    return bool(np.isfinite(std) and std > 1e-12 * abs(mean))


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
    remove(raw)
