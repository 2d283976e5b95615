"""Columns of a grown data set: rows put between those that lie in order already, and codes of a grown vocabulary.

Rows are copied as they are, which leaves most of the work to the speed of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.columns import Column, Dense, Ragged, distinct, ragged_positions
from recsys.data.encoding import FeatureEncoder, as_type, plain
from recsys.data.vocabulary import by_frequency, sorted_lists
from recsys.data.writing import beside, blocks
from recsys.schema import FIRST_CODE, UNKNOWN, Feature

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Insertion:
    """Where new rows go among `num_old` rows.

    Attributes:
        places: the new row n comes before the old row `places[n]`, and after the new rows before it; ascending.
    """

    num_old: int
    places: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return self.num_old + len(self.places)

    def merge(self, old: Array, new: Array) -> Array:
        """The rows of both, in memory."""
        return np.insert(old, self.places, new, axis=0)

    def merge_ragged(self, old: Ragged, new: Ragged) -> Ragged:
        """The rows of both, in memory."""
        lengths = self.merge(np.diff(old.offsets), np.diff(new.offsets))
        values = self._of_values(old, new).merge(old.values, new.values)
        return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]))

    def save(self, old: Column, new: Column, stem: Path) -> None:
        """Write the rows of both as the column `stem`."""
        if isinstance(old, Dense):
            assert isinstance(new, Dense)
            self._stream(old.values, new.values, beside(stem, ".npy"))
            return
        assert isinstance(new, Ragged)
        lengths = self.merge(np.diff(old.offsets), np.diff(new.offsets))
        np.save(beside(stem, ".offsets.npy"), np.concatenate([[0], np.cumsum(lengths)]))
        self._of_values(old, new)._stream(old.values, new.values, beside(stem, ".values.npy"))

    def _of_values(self, old: Ragged, new: Ragged) -> Insertion:
        return Insertion(len(old.values), np.repeat(np.asarray(old.offsets[self.places]), np.diff(new.offsets)))

    def _stream(self, old: Array, new: Array, path: Path) -> None:
        # Through the file and not a map of it, whose pages would cost more than the copy.
        header = {"descr": old.dtype.str, "fortran_order": False, "shape": (len(self), *old.shape[1:])}
        with path.open("wb") as opened:
            np.lib.format.write_array_header_1_0(opened, header)
            for rows in self._blocks(old, new):
                rows.tofile(opened)

    def _blocks(self, old: Array, new: Array) -> Iterator[Array]:
        begin = first = 0
        for end in [block.stop for block in blocks(self.num_old)] or [0]:
            # What goes behind the last old row belongs to the last block.
            last = len(new) if end == self.num_old else int(np.searchsorted(self.places, end))
            yield np.insert(old[begin:end], self.places[first:last] - begin, new[first:last], axis=0)
            begin, first = end, last


@dataclass(frozen=True)
class Recoded:
    """A categorical column whose vocabulary has grown.

    Attributes:
        column: codes of old and new rows.
        vocabulary: values of training rows, the most frequent first.
        unknown: values that it lacks: of each row whose code is `UNKNOWN`, or whose bag holds it, in order.
    """

    column: Column
    vocabulary: pa.Array
    unknown: pa.Array


def recode(
    feature: Feature,
    insertion: Insertion,
    old: Column,
    vocabulary: pa.Array,
    unknown: pa.Array,
    new: pa.Array,
    trained: npt.NDArray[np.bool_],
) -> Recoded:
    """A categorical column with new rows.

    Args:
        feature: the column.
        insertion: where new rows go.
        old: codes of the old rows.
        vocabulary: what these codes mean.
        unknown: values that it lacks, as in `Recoded`.
        new: values of the new rows.
        trained: rows, old and new, that are training events.
    """
    flat = [plain(pc.list_flatten(values)) if feature.is_ragged else values for values in (unknown, new)]
    more = pc.unique(pa.concat_arrays([as_type(values, vocabulary.type) for values in flat])).drop_null()
    every = pa.concat_arrays([vocabulary, more.filter(pc.invert(pc.is_in(more, vocabulary)))])
    # Codes that tell all values apart, of all rows.
    encoder = FeatureEncoder(feature, every)
    known, added = encoder.encode(unknown), encoder.encode(new)
    if isinstance(old, Dense):
        assert isinstance(known, Dense)
        assert isinstance(added, Dense)
        codes = np.array(old.values)
        codes[codes == UNKNOWN] = known.values
        codes = insertion.merge(codes, added.values)
        counted = codes * trained
        both: Column = Dense(codes)
    else:
        assert isinstance(known, Ragged)
        assert isinstance(added, Ragged)
        ragged = insertion.merge_ragged(_replaced(old, known), added)
        codes = ragged.values
        counted = codes * np.repeat(trained, np.diff(ragged.offsets))
        both = ragged
    counts = np.bincount(counted, minlength=FIRST_CODE + len(every))[FIRST_CODE:]
    frequent, order = by_frequency(every, counts)
    lookup = np.full(FIRST_CODE + len(every), UNKNOWN, np.int32)
    lookup[:FIRST_CODE] = np.arange(FIRST_CODE)
    lookup[FIRST_CODE + order] = np.arange(FIRST_CODE, FIRST_CODE + len(order))
    recoded = lookup[codes]
    rest = np.flatnonzero(recoded == UNKNOWN)
    places = codes[rest].astype(np.int64) - FIRST_CODE
    values = every.take(pa.array(places, mask=places < 0))
    if isinstance(both, Dense):
        return Recoded(Dense(recoded), frequent, values)
    rows = np.repeat(np.arange(len(both)), np.diff(both.offsets))
    return Recoded(_bags(rows, recoded, len(both)), frequent, sorted_lists(_lists(rows[rest], values), frequent))


def _replaced(old: Ragged, known: Ragged) -> Ragged:
    """`old` with the codes of a row of `known` in the place of each unknown value."""
    entries = np.flatnonzero(old.values == UNKNOWN)
    starts, lengths = np.arange(len(old.values)), np.ones(len(old.values), np.int64)
    starts[entries], lengths[entries] = len(old.values) + known.offsets[:-1], np.diff(known.offsets)
    values = np.concatenate([old.values, known.values])[ragged_positions(starts, lengths)]
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)])[old.offsets])


def _bags(rows: npt.NDArray[np.int64], codes: Codes, num_rows: int) -> Ragged:
    size = int(codes.max(initial=0)) + 1
    pairs = distinct(rows * size + codes)
    lengths = np.bincount(pairs // size, minlength=num_rows)
    return Ragged((pairs % size).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]))


def _lists(rows: npt.NDArray[np.int64], values: pa.Array) -> pa.Array:
    """Lists of the values of equal rows."""
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(rows)) + 1, [len(rows)]]) if len(rows) else np.zeros(1)
    return pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), values)
