"""Portions of a prepared data set: events of a range of users, for processes that share the users.

Shapes: U users, E events, P processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.core.columns import Column, Dense, Ragged, load_array, load_column
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
            UserError: If there are fewer shards than processes.
        """
        if world_size == 1:
            return None
        places = np.arange(1, world_size) * offsets[-1] // world_size
        if (folder / FILE).exists():
            shards = Shards.load(folder / FILE)
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
        begin: first row of the open ones in their files.
        num_rows: number of open rows.
        first: position of the first open row among the rows of all users.
        is_part: whether there are other rows.
    """

    folder: Path
    begin: int
    num_rows: int
    first: int
    is_part: bool

    @classmethod
    def of(cls, folder: Path, offsets: Int64Array, portion: Portion | None) -> LocalColumns:
        """Return the columns of a folder, or of a portion of the users. Shards are copied if they are not here yet.

        Args:
            folder: folder of the columns, or with the list of their shards.
            offsets: int64 [U + 1], bounds of the rows of each user.
            portion: users whose rows are opened.
        """
        first, end = int(offsets[0]), int(offsets[-1])
        if portion is not None:
            first, end = (int(offsets[user]) for user in portion.cuts[portion.rank : portion.rank + 2])
        base = 0
        if (folder / FILE).exists():
            shards = Shards.load(folder / FILE)
            bounds = shards.bounds()
            # Users without rows may be behind the last shard.
            low = min(int(np.searchsorted(bounds, first, "right")), len(shards.shards)) - 1
            high = max(int(np.searchsorted(bounds, end)), low + 1)
            part = shards.part(low, high)
            folder, base = part.joined(folder / f"joined-{low}-{high}"), int(bounds[low])
        return cls(folder=folder, begin=first - base, num_rows=end - first, first=first, is_part=portion is not None)

    @property
    def _rows(self) -> slice:
        return slice(self.begin, self.begin + self.num_rows)

    def load(self, name: str) -> npt.NDArray[Any]:
        """Memory-map a column of one value a row."""
        array = load_array(self.folder / f"{name}.npy")
        return array[self._rows] if self.is_part else array

    def load_column(self, stem: str, *, ragged: bool) -> Column:
        """Memory-map an encoded column."""
        column = load_column(self.folder / stem, ragged=ragged)
        if not self.is_part:
            return column
        if isinstance(column, Ragged):
            return Ragged(column.values, column.offsets[self.begin : self.begin + self.num_rows + 1])
        return Dense(column.values[self._rows])

    def local(self, positions: Int64Array) -> Int64Array:
        """Return positions among all rows as positions among the open ones. Bounds of other users meet."""
        return np.clip(positions - self.first, 0, self.num_rows) if self.is_part else positions
