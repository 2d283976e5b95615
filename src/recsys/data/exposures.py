"""What users were shown and did not take: negatives that the data brings.

    <fingerprint>/exposures/item_idx.npy int32 [X], time.npy int64 [X], offsets.npy int64 [U+1]

Exposures are no events: no history holds them, nothing predicts them, no count or split sees them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from recsys.core.columns import Ragged, bisect, load_array, ragged_positions

FOLDER = "exposures"
Indices = npt.NDArray[np.int64]


class Exposures(NamedTuple):
    """Exposures of user u are `offsets[u]:offsets[u+1]`, by time.

    Attributes:
        item_idx: int32 [X].
        time: int64 [X].
        offsets: int64 [U + 1].
    """

    item_idx: npt.NDArray[np.int32]
    time: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    def between(self, user_idx: Indices, after: Indices, until: Indices, most: int, num_items: int) -> Ragged:
        """What each user was shown later than `after` and not later than `until`; H rows, each item once.

        Args:
            user_idx: int64 [H].
            after: int64 [H].
            until: int64 [H].
            most: the last so many exposures are looked at.
            num_items: items 1..num_items are given.
        """
        begin, end = self.offsets[user_idx], self.offsets[user_idx + 1]
        first, last = bisect(self.time, begin, end, after), bisect(self.time, begin, end, until)
        first = np.maximum(first, last - most)
        lengths = np.maximum(last - first, 0)
        items = np.asarray(self.item_idx[ragged_positions(first, lengths)])
        row = np.repeat(np.arange(len(lengths)), lengths)
        known = items <= num_items
        rows, values = np.divmod(np.unique(row[known] * (num_items + 1) + items[known]), num_items + 1)
        counts = np.bincount(rows, minlength=len(lengths))
        return Ragged(values.astype(np.int32), np.concatenate([[0], np.cumsum(counts)]))


def load_exposures(path: Path) -> Exposures | None:
    """Exposures of a prepared data set; None where its source declares none."""
    folder = path / FOLDER
    if not folder.is_dir():
        return None
    item_idx, time, offsets = (load_array(folder / f"{name}.npy") for name in Exposures._fields)
    return Exposures(item_idx, time, np.asarray(offsets))
