"""Encoded columns as flat numpy arrays. Imports no torch, because serving reads them too.

Shapes: R rows, W width of vectors, H ranges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.core.types import Int64Array

# Values that are read at once, and bins of a histogram.
READ = 1 << 22
_BINS = 1 << 16


def ragged_positions(starts: Int64Array, lengths: Int64Array) -> Int64Array:
    """Return the positions `starts[0]..starts[0]+lengths[0]-1, starts[1]..`, and so on; int64 [sum(lengths)]."""
    ends = np.cumsum(lengths)
    positions = np.arange(ends[-1] if len(ends) else 0, dtype=np.int64)
    positions += np.repeat(starts - (ends - lengths), lengths)
    return positions


def distinct(values: Int64Array) -> Int64Array:
    """Return the distinct values, ascending. `np.unique` takes ten times as long if almost all values are distinct."""
    # The values are ordered except within each bag. A stable sort uses that and takes a tenth of the time.
    ordered = np.sort(values, kind="stable")
    is_first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    return ordered[is_first]


def bisect(values: Int64Array, moment: Int64Array, *, begin: Int64Array, end: Int64Array) -> Int64Array:
    """Return the first position in `begin[h]..end[h]` whose value is larger than `moment[h]`, `end[h]` if none is.

    Args:
        values: ascending within each range.
        moment: int64 [H].
        begin: int64 [H], first position of each range.
        end: int64 [H], position behind each range.
    """
    low, high = begin.copy(), end.copy()
    while len(open_rows := np.flatnonzero(low < high)):
        middle = (low[open_rows] + high[open_rows]) // 2
        later = np.asarray(values[middle]) > moment[open_rows]
        high[open_rows[later]] = middle[later]
        low[open_rows[~later]] = middle[~later] + 1
    return low


def quantile_of_ranges(values: Int64Array, share: float, *, begin: Int64Array, end: Int64Array) -> float:
    """Return the quantile of the values at `begin[h]..end[h]-1`, equal to numpy's. Memory does not grow with them."""
    lengths = end - begin
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    if total <= READ:
        return float(np.quantile(values[ragged_positions(begin, lengths)], share))
    cuts = np.unique([0, *np.searchsorted(ends, np.arange(READ, total, READ)).tolist(), len(lengths)])

    def blocks(low: int, high: int) -> Iterator[Int64Array]:
        for first, last in pairwise(cuts.tolist()):
            block = np.asarray(values[ragged_positions(begin[first:last], lengths[first:last])])
            yield block[(block >= low) & (block <= high)]

    lowest, highest = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    low = min(int(block.min(initial=highest)) for block in blocks(lowest, highest))
    high = max(int(block.max(initial=lowest)) for block in blocks(lowest, highest))
    place = share * (total - 1)
    rank, before = math.floor(place), 0
    # The range of values that holds the rank is cut into bins, until it holds one value or few.
    while True:
        width = -(-(high - low + 1) // _BINS)
        counts = np.zeros(_BINS, np.int64)
        for block in blocks(low, high):
            counts += np.bincount((block - low) // width, minlength=_BINS)
        upto = before + np.cumsum(counts)
        found = int(np.searchsorted(upto, rank, side="right"))
        before, low, high = (
            int(upto[found] - counts[found]),
            low + found * width,
            min(low + (found + 1) * width - 1, high),
        )
        if low == high or counts[found] <= READ:
            break
    held = np.array([low]) if low == high else np.sort(np.concatenate(list(blocks(low, high))))
    one = held[min(rank - before, len(held) - 1)]
    if rank + 1 < upto[found]:
        other = held[min(rank + 1 - before, len(held) - 1)]
    else:
        other = min((int(block.min(initial=highest)) for block in blocks(high + 1, highest)), default=one)
    pair = np.array([one, one if rank + 1 == total else other])
    return float(np.quantile(pair, place - rank))


@dataclass(frozen=True)
class Dense:
    """One value a row: codes int32 [R], standardised numbers float32 [R] or vectors float32 [R, W].

    A missing number is nan, a missing vector a row of nan.
    """

    values: npt.NDArray[np.generic]

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: npt.NDArray[np.integer]) -> Dense:
        """Return some rows, in memory."""
        return Dense(np.asarray(self.values[rows]))

    def save(self, stem: Path) -> None:
        """Write `<stem>.npy`."""
        np.save(stem.with_name(stem.name + ".npy"), self.values)


@dataclass(frozen=True)
class Ragged:
    """Several codes a row: row r holds `values[offsets[r]:offsets[r+1]]`; int32 [sum of lengths], int64 [R+1]."""

    values: npt.NDArray[np.int32]
    offsets: Int64Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: npt.NDArray[np.integer]) -> Ragged:
        """Return some rows, in memory."""
        starts = np.asarray(self.offsets[rows])
        lengths = np.asarray(self.offsets[np.asarray(rows) + 1]) - starts
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return Ragged(np.asarray(self.values[ragged_positions(starts, lengths)]), offsets)

    def save(self, stem: Path) -> None:
        """Write `<stem>.values.npy` and `<stem>.offsets.npy`."""
        np.save(stem.with_name(stem.name + ".values.npy"), self.values)
        np.save(stem.with_name(stem.name + ".offsets.npy"), self.offsets)


Column = Dense | Ragged


def load_column(stem: Path, *, ragged: bool) -> Column:
    """Memory-map a column that `save` wrote."""
    if ragged:
        values, offsets = (stem.with_name(stem.name + end) for end in (".values.npy", ".offsets.npy"))
        return Ragged(load_array(values), load_array(offsets))
    return Dense(load_array(stem.with_name(stem.name + ".npy")))


def load_array(path: Path) -> npt.NDArray[Any]:
    """Memory-map an array, read only. An empty array cannot be mapped and is read."""
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r")
    except ValueError:
        array = np.load(path)
    return array
