"""Writes encoded columns as they stream by: memory holds one batch, whatever the number of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.core.columns import Dense, Ragged
from recsys.core.schema import UNKNOWN, Feature
from recsys.data.encoding import FeatureEncoder, plain, to_floats
from recsys.data.preparation.vocabulary import sorted_lists

# Rows that are reduced or copied at a time. The same for every engine, so that sums are the same to the last bit.
_BLOCK = 1 << 20


class ColumnWriter(Protocol):
    """Takes the rows of one column in order."""

    def add(self, values: pa.Array) -> None:
        """The next rows."""

    def close(self, trained: npt.NDArray[np.bool_]) -> Feature:
        """Finish the files. `trained` [R]: rows that training events touch. Returns the feature as it is encoded."""


def open_writer(
    feature: Feature, vocabulary: pa.Array | None, stem: Path, num_rows: int, divisor: float, kept: Path | None = None
) -> ColumnWriter:
    """The writer for the kind of `feature`; numbers are divided by `divisor`.

    What encoding loses, and more rows may need, stays in files that begin with `kept`, where it is given: the numbers,
    and the values that the vocabulary lacks.
    """
    if feature.kind == "numeric":
        return _NumericWriter(feature, stem, num_rows, divisor, kept)
    encoder = FeatureEncoder(feature, vocabulary)
    if feature.is_ragged:
        return _RaggedWriter(encoder, stem, num_rows, kept)
    return _DenseWriter(encoder, stem, num_rows, kept)


class _DenseWriter:
    def __init__(self, encoder: FeatureEncoder, stem: Path, num_rows: int, kept: Path | None) -> None:
        is_vector = encoder.feature.kind == "vector"
        shape = (num_rows, encoder.feature.size) if is_vector else (num_rows,)
        self._encoder = encoder
        self._array = open_array(beside(stem, ".npy"), shape, np.float32 if is_vector else np.int32)
        self._kept = _Unknown(encoder, kept)
        self._at = 0

    def add(self, values: pa.Array) -> None:
        encoded = self._encoder.encode(values)
        assert isinstance(encoded, Dense)
        self._array[self._at : self._at + len(encoded)] = encoded.values
        self._at += len(encoded)
        self._kept.add(values, encoded)

    def close(self, trained: npt.NDArray[np.bool_]) -> Feature:
        assert self._at == len(self._array) == len(trained)
        self._kept.close()
        return self._encoder.feature


class _Unknown:
    """Keeps the values that a vocabulary lacks, in the order of the rows; of bags a list for each that has any."""

    def __init__(self, encoder: FeatureEncoder, stem: Path | None) -> None:
        self._stem = stem if encoder.feature.has_vocabulary else None
        self._is_ragged = encoder.feature.is_ragged
        kind = pa.null() if encoder.vocabulary is None else encoder.vocabulary.type
        self._type = pa.list_(kind) if self._is_ragged else kind
        self._vocabulary = encoder.vocabulary
        self._values: list[pa.Array] = []

    def add(self, values: pa.Array, encoded: Dense | Ragged) -> None:
        if self._stem is None:
            return
        if isinstance(encoded, Ragged):
            rows = np.repeat(np.arange(len(encoded)), np.diff(encoded.offsets))[encoded.values == UNKNOWN]
            unknown = sorted_lists(plain(values).take(pa.array(rows)), self._vocabulary)
        else:
            unknown = plain(values).filter(pa.array(encoded.values == UNKNOWN))
        self._values.append(unknown.cast(self._type))

    def close(self) -> None:
        if self._stem is not None:
            table = pa.table({"value": pa.chunked_array(self._values, self._type).combine_chunks()})
            pq.write_table(table, beside(self._stem, ".parquet"))


class _RaggedWriter:
    def __init__(self, encoder: FeatureEncoder, stem: Path, num_rows: int, kept: Path | None) -> None:
        self._encoder, self._stem = encoder, stem
        self._kept = _Unknown(encoder, kept)
        self._offsets = open_array(beside(stem, ".offsets.npy"), (num_rows + 1,), np.int64)
        self._offsets[0] = 0
        self._at = 0
        self._raw_path = beside(stem, ".values.raw")
        self._raw: BinaryIO = self._raw_path.open("wb")

    def add(self, values: pa.Array) -> None:
        encoded = self._encoder.encode(values)
        assert isinstance(encoded, Ragged)
        self._offsets[self._at + 1 : self._at + 1 + len(encoded)] = self._offsets[self._at] + encoded.offsets[1:]
        self._at += len(encoded)
        self._raw.write(encoded.values.tobytes())
        self._kept.add(values, encoded)

    def close(self, trained: npt.NDArray[np.bool_]) -> Feature:
        assert self._at == len(self._offsets) - 1 == len(trained)
        self._raw.close()
        # How many values there are is known only now: the header is written, and the values are copied behind it.
        values = open_array(beside(self._stem, ".values.npy"), (int(self._offsets[-1]),), np.int32)
        if len(values):
            raw = np.memmap(self._raw_path, np.int32, "r")
            for block in blocks(len(raw)):
                values[block] = raw[block]
        self._raw_path.unlink()
        self._kept.close()
        return self._encoder.feature


class _NumericWriter:
    """Keeps the numbers as they are until mean and deviation of the trained rows are known."""

    def __init__(self, feature: Feature, stem: Path, num_rows: int, divisor: float, kept: Path | None) -> None:
        self._feature, self._stem, self._divisor = feature, stem, divisor
        self._is_kept = kept is not None
        self._raw_path = beside(stem, ".raw.npy") if kept is None else beside(kept, ".npy")
        self._raw = open_array(self._raw_path, (num_rows,), np.float64)
        self._at = 0

    def add(self, values: pa.Array) -> None:
        self._raw[self._at : self._at + len(values)] = to_floats(values) / self._divisor
        self._at += len(values)

    def close(self, trained: npt.NDArray[np.bool_]) -> Feature:
        assert self._at == len(self._raw) == len(trained)
        feature = write_standardised(self._feature, self._raw, trained, self._stem)
        if not self._is_kept:
            self._raw_path.unlink()
        return feature


def write_standardised(
    feature: Feature, numbers: npt.NDArray[np.float64], trained: npt.NDArray[np.bool_], stem: Path
) -> Feature:
    """Write `numbers` [R], standardised by those of the rows that are `trained` [R]; the feature with its moments."""
    mean, std = _moments(numbers, trained)
    feature = dataclasses.replace(feature, mean=mean, std=std)
    encoder = FeatureEncoder(feature, None)
    array = open_array(beside(stem, ".npy"), numbers.shape, np.float32)
    for block in blocks(len(array)):
        encoded = encoder.encode(pa.array(numbers[block]))
        assert isinstance(encoded, Dense)
        array[block] = encoded.values
    return feature


def _moments(numbers: npt.NDArray[np.float64], trained: npt.NDArray[np.bool_]) -> tuple[float, float]:
    def known() -> Iterator[npt.NDArray[np.float64]]:
        for block in blocks(len(numbers)):
            values = numbers[block][trained[block]]
            yield values[~np.isnan(values)]

    count = sum(len(values) for values in known())
    if not count:
        return 0.0, 1.0
    mean = float(sum(values.sum() for values in known()) / count)
    std = float(np.sqrt(sum(np.square(values - mean).sum() for values in known()) / count))
    # Rounding leaves a constant column a tiny deviation, which must not blow up unseen values.
    return mean, std if np.isfinite(std) and std > 1e-12 * abs(mean) else 1.0


def open_array(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
    """A new `.npy` file to be filled in place; an empty one, which cannot be mapped, is written at once."""
    if 0 in shape:
        empty = np.zeros(shape, dtype)
        np.save(path, empty)
        return empty
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def beside(stem: Path, ending: str) -> Path:
    """`stem` with `ending` after its name, which may hold dots of its own."""
    return stem.with_name(stem.name + ending)


def blocks(num_rows: int) -> Iterator[slice]:
    """Slices of `num_rows` rows in order."""
    for begin in range(0, num_rows, _BLOCK):
        yield slice(begin, min(begin + _BLOCK, num_rows))
