"""Columns of a grown data set: rows put between those that lie in order already, and codes of a grown vocabulary.

Rows are copied as they are, which leaves most of the work to the speed of memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.columns import Column, Dense, Ragged, distinct, ragged_positions
from recsys.core.schema import FIRST_CODE, UNKNOWN, Feature
from recsys.data.encoding import FeatureEncoder, as_type, plain
from recsys.data.preparation.column_writers import beside, blocks
from recsys.data.preparation.vocabulary import by_frequency, sorted_lists

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int32]

# Rows that are worked on at a time: few enough to stay in the cache.
_BLOCK = 1 << 17


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
            self.stream(old.values, new.values, beside(stem, ".npy"))
            return
        assert isinstance(new, Ragged)
        lengths = self.merge(np.diff(old.offsets), np.diff(new.offsets))
        np.save(beside(stem, ".offsets.npy"), np.concatenate([[0], np.cumsum(lengths)]))
        self._of_values(old, new).stream(old.values, new.values, beside(stem, ".values.npy"))

    def stream(self, old: Array, new: Array, path: Path, change: Callable[[Array], Array] | None = None) -> None:
        """Write the rows of both, changed block by block, as the file `path`."""
        # Not through a map of the file, whose pages would cost more than the copy.
        header = {"descr": old.dtype.str, "fortran_order": False, "shape": (len(self), *old.shape[1:])}
        with path.open("wb") as opened:
            np.lib.format.write_array_header_1_0(opened, header)
            begin = first = 0
            for end in [*range(_BLOCK, self.num_old, _BLOCK), self.num_old]:
                # What goes behind the last old row belongs to the last block.
                last = len(new) if end == self.num_old else int(np.searchsorted(self.places, end))
                rows = np.insert(old[begin:end], self.places[first:last] - begin, new[first:last], axis=0)
                (rows if change is None else change(rows)).tofile(opened)
                begin, first = end, last

    def _of_values(self, old: Ragged, new: Ragged) -> Insertion:
        return Insertion(len(old.values), np.repeat(np.asarray(old.offsets[self.places]), np.diff(new.offsets)))


class Vocabulary(NamedTuple):
    """What categorical codes mean, and what they lose.

    Attributes:
        values: of training rows, the most frequent first.
        unknown: other values: of each row whose code is `UNKNOWN`, or whose bag holds it, in order.
    """

    values: pa.Array
    unknown: pa.Array


def recode(
    feature: Feature,
    insertion: Insertion,
    old: Column,
    vocabulary: Vocabulary,
    new: pa.Array,
    trained: npt.NDArray[np.bool_],
    stem: Path,
) -> Vocabulary:
    """Write a categorical column with new rows; says what its codes mean.

    Args:
        feature: the column.
        insertion: where new rows go.
        old: codes of the old rows.
        vocabulary: what these codes mean.
        new: values of the new rows.
        trained: rows, old and new, that are training events.
        stem: files of the column.
    """
    flat = [plain(pc.list_flatten(some)) if feature.is_ragged else some for some in (vocabulary.unknown, new)]
    more = pc.unique(pa.concat_arrays([as_type(some, vocabulary.values.type) for some in flat])).drop_null()
    more = more.filter(pc.invert(pc.is_in(more, vocabulary.values)))
    # Codes that tell all values apart, of all rows.
    every = pa.concat_arrays([vocabulary.values, more])
    encoder = FeatureEncoder(dataclasses.replace(feature, size=FIRST_CODE + len(every)), every)
    known, added = encoder.encode(vocabulary.unknown), encoder.encode(new)
    if isinstance(old, Dense):
        assert isinstance(known, Dense)
        assert isinstance(added, Dense)
        return _recode_dense(every, insertion, old.values, known.values, added.values, trained, stem)
    assert isinstance(known, Ragged)
    assert isinstance(added, Ragged)
    return _recode_bags(every, insertion.merge_ragged(_replaced(old, known), added), trained, stem)


def _recode_dense(
    every: pa.Array,
    insertion: Insertion,
    old: Array,
    known: Array,
    new: Array,
    trained: npt.NDArray[np.bool_],
    stem: Path,
) -> Vocabulary:
    unknown = np.concatenate([*(np.flatnonzero(old[block] == UNKNOWN) + block.start for block in blocks(len(old)))])
    if len(unknown):
        old = np.array(old)
        old[unknown] = known
    at = insertion.places + np.arange(len(new))
    size = FIRST_CODE + len(every)
    counts = np.bincount(new * trained[at], minlength=size)
    trained_before = np.delete(trained, at)
    for begin in range(0, len(old), _BLOCK):
        counts += np.bincount(old[begin : begin + _BLOCK] * trained_before[begin : begin + _BLOCK], minlength=size)
    values, lookup = _renumbered(every, counts)
    left: list[npt.NDArray[np.int32]] = []

    def change(codes: Codes) -> Codes:
        recoded = lookup[codes]
        left.append(codes[recoded == UNKNOWN])
        return recoded

    insertion.stream(old, new, beside(stem, ".npy"), change)
    return Vocabulary(values, _values_of(every, np.concatenate(left)))


def _recode_bags(every: pa.Array, both: Ragged, trained: npt.NDArray[np.bool_], stem: Path) -> Vocabulary:
    rows = np.repeat(np.arange(len(both)), np.diff(both.offsets))
    counts = np.bincount(both.values * trained[rows], minlength=FIRST_CODE + len(every))
    values, lookup = _renumbered(every, counts)
    recoded = lookup[both.values]
    # Values that are unknown now are one.
    size = len(lookup)
    pairs = distinct(rows * size + recoded)
    lengths = np.bincount(pairs // size, minlength=len(both))
    Ragged((pairs % size).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)])).save(stem)
    rest = np.flatnonzero(recoded == UNKNOWN)
    _, lengths = np.unique(rows[rest], return_counts=True)
    lists = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()),
        _values_of(every, both.values[rest]),
    )
    return Vocabulary(values, sorted_lists(lists, values))


def _renumbered(values: pa.Array, counts: npt.NDArray[np.int64]) -> tuple[pa.Array, Codes]:
    """The values that occur, in the order of their new codes; and the new code of each old one."""
    frequent, order = by_frequency(values, counts[FIRST_CODE:])
    lookup = np.full(len(counts), UNKNOWN, np.int32)
    lookup[:FIRST_CODE] = np.arange(FIRST_CODE)
    lookup[FIRST_CODE + order] = np.arange(FIRST_CODE, FIRST_CODE + len(order))
    return frequent, lookup


def _values_of(values: pa.Array, codes: Codes) -> pa.Array:
    places = codes.astype(np.int64) - FIRST_CODE
    return values.take(pa.array(places, mask=places < 0))


def _replaced(old: Ragged, known: Ragged) -> Ragged:
    """`old` with the codes of a row of `known` in the place of each unknown value."""
    entries = np.flatnonzero(old.values == UNKNOWN)
    starts, lengths = np.arange(len(old.values)), np.ones(len(old.values), np.int64)
    starts[entries], lengths[entries] = len(old.values) + known.offsets[:-1], np.diff(known.offsets)
    values = np.concatenate([old.values, known.values])[ragged_positions(starts, lengths)]
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)])[old.offsets])
