"""Columns of a grown data set: rows put between those that lie in order already, and codes of a grown vocabulary.

Rows are copied in blocks, which leaves most of the work to the speed of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.columns import Dense, Ragged
from recsys.data.encoding import FeatureEncoder, as_type
from recsys.data.writing import beside, blocks, open_array
from recsys.schema import FIRST_CODE, UNKNOWN, Feature

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Insertion:
    """Where new rows go among `num_old` rows.

    Attributes:
        places: the new row n comes before the old row `places[n]`, and after the new rows before it; ascending.
    """

    num_old: int
    places: Indices

    def __len__(self) -> int:
        return self.num_old + len(self.places)

    def write(
        self,
        old: npt.NDArray[Any],
        new: npt.NDArray[Any],
        into: npt.NDArray[Any],
        change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None,
    ) -> None:
        """Fill `into` [num_old + num_new, ...] with the rows of both, changed block by block."""
        for block, rows in self.blocks(old, new):
            into[block] = rows if change is None else change(rows)

    def blocks(self, old: npt.NDArray[Any], new: npt.NDArray[Any]) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
        """Runs of the rows of both, with where they lie."""
        bounds = [block.stop for block in blocks(self.num_old)] or [0]
        begin = first = 0
        for end in bounds:
            # What goes behind the last old row belongs to the last block.
            last = len(new) if end == self.num_old else int(np.searchsorted(self.places, end))
            rows = np.insert(old[begin:end], self.places[first:last] - begin, new[first:last], axis=0)
            yield slice(begin + first, end + last), rows
            begin, first = end, last

    def values_of(self, old: Ragged, new: Ragged) -> Insertion:
        """The same for the values of ragged rows."""
        return Insertion(len(old.values), np.repeat(np.asarray(old.offsets[self.places]), np.diff(new.offsets)))


def write_dense(insertion: Insertion, old: Dense, new: Dense, stem: Path) -> None:
    """Rows of both as the column `stem`."""
    values = old.values
    array = open_array(beside(stem, ".npy"), (len(insertion), *values.shape[1:]), values.dtype.type)
    insertion.write(values, new.values, array)


def write_ragged(insertion: Insertion, old: Ragged, new: Ragged, stem: Path) -> None:
    """Rows of both as the ragged column `stem`."""
    offsets = open_array(beside(stem, ".offsets.npy"), (len(insertion) + 1,), np.int64)
    lengths = np.empty(len(insertion), np.int64)
    insertion.write(np.diff(old.offsets), np.diff(new.offsets), lengths)
    offsets[0] = 0
    np.cumsum(lengths, out=offsets[1:])
    inner = insertion.values_of(old, new)
    values = open_array(beside(stem, ".values.npy"), (len(inner),), np.int32)
    inner.write(old.values, new.values, values)


def recode(
    feature: Feature,
    insertion: Insertion,
    old: npt.NDArray[Any],
    vocabulary: pa.Array,
    unknown: pa.Array,
    new: pa.Array,
    trained: npt.NDArray[np.bool_],
    stem: Path,
) -> tuple[pa.Array, pa.Array]:
    """Write a categorical column of both; values of training rows become the vocabulary, the most frequent first.

    Args:
        feature: the column.
        insertion: where new rows go.
        old: codes of the old rows.
        vocabulary: what these codes mean.
        unknown: values of the old rows that are unknown, in order.
        new: values of the new rows.
        trained: rows, old and new, that are training events.
        stem: the column's files.

    Returns:
        The vocabulary, and the values of the rows that are unknown.
    """
    more = pc.unique(pa.concat_arrays([unknown, as_type(new, vocabulary.type)])).drop_null()
    more = more.filter(pc.invert(pc.is_in(more, vocabulary)))
    every = pa.concat_arrays([vocabulary, more])
    encoder = FeatureEncoder(feature, every)
    codes = np.array(old)
    codes[codes == UNKNOWN] = _codes(encoder, unknown)
    both = np.empty(len(insertion), np.int32)
    insertion.write(codes, _codes(encoder, new), both)

    counts = np.bincount(both[trained], minlength=FIRST_CODE + len(every))[FIRST_CODE:]
    table = pa.table({"value": every, "n": counts, "place": np.arange(len(every))}).filter(pa.array(counts > 0))
    order = np.asarray(table.sort_by([("n", "descending"), ("value", "ascending")])["place"])
    lookup = np.full(FIRST_CODE + len(every), UNKNOWN, np.int32)
    lookup[:FIRST_CODE] = np.arange(FIRST_CODE)
    lookup[FIRST_CODE + order] = np.arange(FIRST_CODE, FIRST_CODE + len(order))
    coded = open_array(beside(stem, ".npy"), (len(insertion),), np.int32)
    left: list[npt.NDArray[np.int32]] = []
    for block in blocks(len(both)):
        coded[block] = lookup[both[block]]
        left.append(both[block][coded[block] == UNKNOWN])
    rest = np.concatenate([*left, np.empty(0, np.int32)]).astype(np.int64) - FIRST_CODE
    return every.take(pa.array(order)), every.take(pa.array(rest, mask=rest < 0))


def _codes(encoder: FeatureEncoder, values: pa.Array) -> npt.NDArray[np.int32]:
    codes = encoder.encode(values)
    assert isinstance(codes, Dense)
    return codes.values.astype(np.int32, copy=False)
