"""Writers of encoded columns. They take rows as they stream by, so memory holds one batch at a time."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys.core.columns import Dense, Ragged
from recsys.core.schema import Feature
from recsys.core.types import Float64Array
from recsys.data.encoding import FeatureEncoder, to_floats
from recsys.data.preparation.feature_drafts import Draft

log = logging.getLogger("recsys")

# Numbers whose median and tails are looked at, spread over the column.
_SAMPLE = 1 << 20
# If the deviation is this many times that of the numbers without their tail (this share, farthest from the median), the
# tail would leave the others no difference that a model could see.
_TAIL, _FAR = 0.025, 50.0
# Rows that are reduced or copied at a time. The same for every engine, so that sums are the same to the last bit.
BLOCK = 1 << 20


T = TypeVar("T")


class OverBlocks(Protocol):
    """Applies a function to the numbers of trained rows in each block of a column, in order."""

    def __call__(self, function: Callable[[Float64Array], T], /) -> list[T]: ...  # noqa: D102


class ColumnWriter(Protocol):
    """Writes the rows of one column in order."""

    def add(self, values: pa.Array) -> None:
        """Write the next rows."""

    def close(self, trained: npt.NDArray[np.bool_]) -> Feature:
        """Finish the files and return the encoded feature. `trained` [R]: rows that occur in training events."""


def open_writer(draft: Draft, stem: Path, *, num_rows: int) -> ColumnWriter:
    """Return the writer for the kind of a feature. The names of its files begin with `stem`."""
    if draft.feature.kind == "numeric":
        return _NumericWriter(draft, stem, num_rows=num_rows)
    encoder = FeatureEncoder(draft.feature, draft.vocabulary, folder=draft.folder)
    if draft.feature.is_ragged:
        return _RaggedWriter(encoder, stem, num_rows=num_rows)
    return _DenseWriter(encoder, stem, num_rows=num_rows)


class _DenseWriter:
    def __init__(self, encoder: FeatureEncoder, stem: Path, *, num_rows: int) -> None:
        is_vector = encoder.feature.kind == "vector"
        shape = (num_rows, encoder.feature.size) if is_vector else (num_rows,)
        self._encoder = encoder
        self._array = open_array(_beside(stem, ".npy"), shape, dtype=np.float32 if is_vector else np.int32)
        self._at = 0

    def add(self, values: pa.Array) -> None:
        encoded = self._encoder.encode(values)
        assert isinstance(encoded, Dense)
        self._array[self._at : self._at + len(encoded)] = encoded.values
        self._at += len(encoded)

    def close(self, trained: npt.NDArray[np.bool_]) -> Feature:
        assert self._at == len(self._array) == len(trained)
        return self._encoder.feature


class _RaggedWriter:
    def __init__(self, encoder: FeatureEncoder, stem: Path, *, num_rows: int) -> None:
        self._encoder, self._stem = encoder, stem
        self._offsets = open_array(_beside(stem, ".offsets.npy"), (num_rows + 1,), dtype=np.int64)
        self._offsets[0] = 0
        self._at = 0
        self._raw_path = _beside(stem, ".values.raw")
        self._raw: BinaryIO = self._raw_path.open("wb")

    def add(self, values: pa.Array) -> None:
        encoded = self._encoder.encode(values)
        assert isinstance(encoded, Ragged)
        self._offsets[self._at + 1 : self._at + 1 + len(encoded)] = self._offsets[self._at] + encoded.offsets[1:]
        self._at += len(encoded)
        self._raw.write(encoded.values.tobytes())

    def close(self, trained: npt.NDArray[np.bool_]) -> Feature:
        assert self._at == len(self._offsets) - 1 == len(trained)
        self._raw.close()
        # The header of an array holds the number of values, which is known only now, so the values are copied.
        values = open_array(_beside(self._stem, ".values.npy"), (int(self._offsets[-1]),), dtype=np.int32)
        if len(values):
            raw = np.memmap(self._raw_path, np.int32, "r")
            for block in _blocks(len(raw)):
                values[block] = raw[block]
        self._raw_path.unlink()
        return self._encoder.feature


class _NumericWriter:
    """Keeps the numbers in a file until mean and deviation of the trained rows are known."""

    def __init__(self, draft: Draft, stem: Path, *, num_rows: int) -> None:
        self._draft, self._stem = draft, stem
        self._raw_path = _beside(stem, ".raw.npy")
        self._raw = open_array(self._raw_path, (num_rows,), dtype=np.float64)
        self._at = 0

    def add(self, values: pa.Array) -> None:
        self._raw[self._at : self._at + len(values)] = to_floats(values) / self._draft.divisor
        self._at += len(values)

    def close(self, trained: npt.NDArray[np.bool_]) -> Feature:
        assert self._at == len(self._raw) == len(trained)
        with np.errstate(over="ignore", invalid="ignore"):
            feature = self._draft.feature
            if not self._draft.is_fixed:
                mean, std = moments(partial(_over_blocks, self._raw, trained), name=feature.key)
                feature = dataclasses.replace(feature, mean=mean, std=std)
        encoder = FeatureEncoder(feature, None)
        array = open_array(_beside(self._stem, ".npy"), self._raw.shape, dtype=np.float32)
        for block in _blocks(len(array)):
            encoded = encoder.encode(pa.array(self._raw[block]))
            assert isinstance(encoded, Dense)
            array[block] = encoded.values
        self._raw_path.unlink()
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


def open_array(path: Path, shape: tuple[int, ...], *, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Return a new memory-mapped `.npy` file to fill in place. An empty one cannot be mapped and is written at once.

    Raises:
        OSError: If the disk has no space for it.
    """
    if 0 in shape:
        empty = np.zeros(shape, dtype)
        np.save(path, empty)
        return empty
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    # A mapped file has holes, and a full disk kills the process that writes to one. So its space is taken now.
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file, _named(path):
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add the file to an error of the disk. A file system that cannot reserve space does without."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise OSError(error.errno, error.strerror, str(path)) from error


def _over_blocks(
    numbers: Float64Array, trained: npt.NDArray[np.bool_], function: Callable[[Float64Array], T]
) -> list[T]:
    found = []
    for block in _blocks(len(numbers)):
        values = numbers[block][trained[block]]
        found.append(function(values[~np.isnan(values)]))
    return found


def _beside(stem: Path, ending: str) -> Path:
    # The name may contain dots, and `with_suffix` would cut it at the last one.
    return stem.with_name(stem.name + ending)


def _blocks(num_rows: int) -> Iterator[slice]:
    for begin in range(0, num_rows, BLOCK):
        yield slice(begin, min(begin + BLOCK, num_rows))
