"""Exposures: items that users were shown and did not engage with. They serve as negatives.

    <fingerprint>/exposures/item_idx.npy int32 [X], time.npy int64 [X], offsets.npy int64 [U+1]

Exposures are not events: they are not part of histories, targets, counts or splits.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from recsys.core.columns import Ragged, bisect, ragged_positions
from recsys.core.types import Int64Array
from recsys.data.portions import LocalColumns, Portion
from recsys.data.user_bounds import load_offsets

FOLDER = "exposures"


class Exposures(NamedTuple):
    """Exposures of all users: those of user u are `offsets[u]:offsets[u+1]`, by time.

    Attributes:
        item_idx: int32 [X], item of each exposure.
        time: int64 [X], time of each exposure.
        offsets: int64 [U + 1], bounds of each user's exposures.
    """

    item_idx: npt.NDArray[np.int32]
    time: Int64Array
    offsets: Int64Array

    def between(
        self, user_idx: Int64Array, *, after: Int64Array, until: Int64Array, most: int, num_items: int
    ) -> Ragged:
        """Return the items that each user was shown in `after < time <= until`, each once; H rows.

        Args:
            user_idx: int64 [H].
            after: int64 [H].
            until: int64 [H].
            most: maximum number of exposures of a row; the latest ones are kept.
            num_items: only items 1..num_items are returned.
        """
        begin, end = self.offsets[user_idx], self.offsets[user_idx + 1]
        first, last = (bisect(self.time, moment, begin=begin, end=end) for moment in (after, until))
        first = np.maximum(first, last - most)
        lengths = np.maximum(last - first, 0)
        items = np.asarray(self.item_idx[ragged_positions(first, lengths)])
        row = np.repeat(np.arange(len(lengths)), lengths)
        known = items <= num_items
        rows, values = np.divmod(np.unique(row[known] * (num_items + 1) + items[known]), num_items + 1)
        counts = np.bincount(rows, minlength=len(lengths))
        return Ragged(values.astype(np.int32), np.concatenate([[0], np.cumsum(counts)]))


def load_exposures(path: Path, *, num_users: int, portion: Portion | None) -> Exposures | None:
    """Return the exposures of a prepared data set or a portion of it, or None if its source declares none.

    Raises:
        UserError: If their bounds are damaged, or those of other users.
    """
    folder = path / FOLDER
    if not folder.is_dir():
        return None
    offsets = load_offsets(folder / "offsets.npy", num_users)
    columns = LocalColumns.of(folder, offsets, portion)
    return Exposures(columns.load("item_idx"), columns.load("time"), columns.local(offsets))
