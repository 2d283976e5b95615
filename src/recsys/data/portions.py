"""Portions of a prepared data set: events of a range of users, for processes that share the users.

Shapes: U users, E events, P processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.core.columns import Column, Dense, Ragged, load_array
from recsys.core.errors import UserError
from recsys.core.types import Int64Array
from recsys.data.shards import FILE, Shards


@dataclass(frozen=True, kw_only=True)
class Portion:
    """Users of one process.

    Attributes:
        rank: number of the process.
        cuts: int64 [P + 1]; process p has the users `cuts[p]..cuts[p+1]-1`.
        num_trained: int64 [U], number of training events of every user.
    """

    rank: int
    cuts: Int64Array
    num_trained: Int64Array

    @classmethod
    def of(
        cls, folder: Path, rank: int, *, world_size: int, offsets: Int64Array, train_end: Int64Array
    ) -> Portion | None:
        """Return the users of a process, None for one process. They end where a shard of the folder `folder` ends.

        Raises:
            UserError: If there are fewer shards than processes, or they have rows of other users.
        """
        if world_size == 1:
            return None
        places = np.arange(1, world_size) * offsets[-1] // world_size
        if (shards := _load_shards(folder, offsets)) is not None:
            at = np.searchsorted(shards.bounds()[:-1], places)
            if len(set(at.tolist()) - {0, len(shards.shards)}) < world_size - 1:
                raise UserError(
                    f"{folder / FILE}: {len(shards.shards)} shards for {world_size} processes; expected several for "
                    "each (data.engine.shuffle_partitions)"
                )
            inner = np.array([shards.shards[place].first_user for place in at])
        else:
            inner = np.searchsorted(offsets, places)
        return cls(rank=rank, cuts=np.array([0, *inner, len(offsets) - 1]), num_trained=train_end - offsets[:-1])


@dataclass(frozen=True, kw_only=True)
class LocalColumns:
    """Columns of events in a local folder.

    Attributes:
        folder: folder of the columns.
        shards: shards that the columns are copied from when they are needed; None for columns that are here.
        needed: first of the shards with open rows, and the one behind them.
        first: first open row.
        num_rows: number of open rows.
        is_part: whether there are other rows.
    """

    folder: Path
    shards: Shards | None
    needed: tuple[int, int]
    first: int
    num_rows: int
    is_part: bool

    @classmethod
    def of(cls, folder: Path, offsets: Int64Array, portion: Portion | None) -> LocalColumns:
        """Return the columns of a folder, or of a portion of the users.

        Args:
            folder: folder of the columns, or with the list of their shards.
            offsets: int64 [U + 1], bounds of the rows of each user.
            portion: users whose rows are opened.

        Raises:
            UserError: If the shards have rows of other users.
        """
        first, end = int(offsets[0]), int(offsets[-1])
        if portion is not None:
            first, end = (int(offsets[user]) for user in portion.cuts[portion.rank : portion.rank + 2])
        shards, needed = _load_shards(folder, offsets), (0, 0)
        if shards is not None:
            bounds = shards.bounds()
            # Users without rows may be behind the last shard.
            low = min(int(np.searchsorted(bounds, first, "right")), len(shards.shards)) - 1
            needed = low, max(int(np.searchsorted(bounds, end)), low + 1)
        return cls(
            folder=folder,
            shards=shards,
            needed=needed,
            first=first,
            num_rows=end - first,
            is_part=portion is not None,
        )

    def _array(self, name: str, rows: slice) -> npt.NDArray[Any]:
        """Memory-map an array: the rows of a portion, or all. Shards are copied now, or for all rows at first use."""
        if self.shards is None:
            array = load_array(self.folder / f"{name}.npy")
        else:
            begin, end = self.needed
            load = partial(self.shards.column, self.folder / "copied", name, begin=begin, end=end)
            if not self.is_part:
                return LateArray(load)  # type: ignore[return-value]  # It behaves like one.
            array = load()
        return array[rows] if self.is_part else array

    def load(self, name: str) -> npt.NDArray[Any]:
        """Memory-map a column of one value a row."""
        return self._array(name, slice(self.first, self.first + self.num_rows))

    def load_column(self, stem: str, *, ragged: bool) -> Column:
        """Memory-map an encoded column."""
        if not ragged:
            return Dense(self.load(stem))
        offsets = self._array(f"{stem}.offsets", slice(self.first, self.first + self.num_rows + 1))
        return Ragged(self._array(f"{stem}.values", slice(None)), offsets)

    def local(self, positions: Int64Array) -> Int64Array:
        """Return positions among all rows as positions among the open ones. Bounds of other users meet."""
        return np.clip(positions - self.first, 0, self.num_rows) if self.is_part else positions


def _load_shards(folder: Path, offsets: Int64Array) -> Shards | None:
    """Return the shards of the rows of a folder, checked with the bounds of each user's rows; None if it has none."""
    file = folder / FILE
    if not file.exists():
        return None
    shards = Shards.load(file)
    bounds = shards.bounds().tolist()
    for shard, row in zip(shards.shards, bounds, strict=False):
        if not (0 <= shard.first_user < len(offsets) and offsets[shard.first_user] == row):
            found = f"row {row} as the first one of user_idx {shard.first_user} in the shard {shard.name}"
            raise UserError(
                f"{file}: found {found}, expected the rows of users by their offsets; prepare the data again"
            )
    if bounds[-1] != offsets[-1]:
        raise UserError(f"{file}: found {bounds[-1]} rows, expected {offsets[-1]}; prepare the data again")
    return shards


class LateArray(np.lib.mixins.NDArrayOperatorsMixin):
    """Array that is loaded at its first use.

    Args:
        load: returns the array.
    """

    def __init__(self, load: Callable[[], npt.NDArray[Any]]) -> None:
        self._load = load

    @cached_property
    def _values(self) -> npt.NDArray[Any]:
        return self._load()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._values, name)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self._values, dtype, copy=copy)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **settings: Any) -> Any:
        arrays = (np.asarray(given) if isinstance(given, LateArray) else given for given in inputs)
        return getattr(ufunc, method)(*arrays, **settings)

    def __getitem__(self, rows: Any) -> Any:
        return self._values[rows]

    def __len__(self) -> int:
        return len(self._values)
