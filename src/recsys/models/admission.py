"""Choice of the items, or of the users, that get an id embedding of their own if the table has too few rows for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from recsys.core.columns import ragged_positions
from recsys.core.errors import UnsuitableDataError
from recsys.core.index_time import DAY
from recsys.core.types import Int64Array
from recsys.data.dataset import PreparedDataset

# Users whose events are read at once.
_USERS = 100_000


@dataclass(frozen=True)
class Admission:
    """Rule that gives items or users a row of an id table, anew for each training.

    An item (or user) is admitted by its number of training events, and evicted when these are too old. If more pass
    than there are rows, those with the most events stay, of equal ones those with the newest event.

    Attributes:
        capacity: rows of the table; None for a row for each item or user with training events.
        min_events: training events that an item or user needs.
        window_days: days before the newest training event whose events count; None for all.

    Raises:
        ValueError: If a number is too small, or there are conditions without a capacity.
    """

    capacity: int | None = None
    min_events: int = 1
    window_days: float | None = None

    def __post_init__(self) -> None:
        if self.capacity is not None and self.capacity < 1:
            raise ValueError(f"capacity: found {self.capacity}, expected at least 1, or null")
        if self.min_events < 1:
            raise ValueError(f"min_events: found {self.min_events}, expected at least 1")
        if self.window_days is not None and self.window_days <= 0:
            raise ValueError(f"window_days: found {self.window_days}, expected a positive number, or null")
        if self.capacity is None and (self.min_events > 1 or self.window_days is not None):
            raise ValueError("capacity: found null, expected the number of rows with min_events or window_days")

    def rows(self, dataset: PreparedDataset, owner: Literal["items", "users"]) -> Int64Array:
        """Return the row of each item or user in the table, from 1 on in their order; 0 for those without one.

        Returns:
            int64 [num_trained + 1] by item_idx, or int64 [U] by user_idx.

        Raises:
            UnsuitableDataError: If days are given and the timestamps have no clock.
        """
        assert self.capacity is not None, "without a capacity every item or user has a row"
        if self.window_days is not None and not dataset.meta.time_resolution.has_clock:
            raise UnsuitableDataError(
                f"{owner.removesuffix('s')}_tower.admission.window_days with "
                f"data.time={dataset.meta.time_resolution}: expected null, or timestamps in seconds or days"
            )
        since = None
        if self.window_days is not None:
            since = (dataset.train_until or 0) - self.window_days * DAY
        of_users = owner == "users"
        count = np.zeros(dataset.num_users if of_users else dataset.num_trained + 1, np.int64)
        last = np.full(len(count), np.iinfo(np.int64).min)
        begin, end = dataset.offsets[:-1], dataset.train_end
        for first in range(0, len(begin), _USERS):
            users = slice(first, first + _USERS)
            lengths = end[users] - begin[users]
            positions = ragged_positions(begin[users], lengths)
            time = np.asarray(dataset.time[positions])
            owners = first + np.repeat(np.arange(len(lengths)), lengths) if of_users else dataset.item_idx[positions]
            np.maximum.at(last, owners, time)
            count += np.bincount(owners if since is None else owners[time > since], minlength=len(count))
        if not of_users:
            count[0] = 0
        admitted = np.flatnonzero(count >= self.min_events)
        admitted = admitted[np.lexsort((-last[admitted], -count[admitted]))[: self.capacity]]
        rows = np.zeros(len(count), np.int64)
        rows[np.sort(admitted)] = np.arange(1, len(admitted) + 1)
        return rows
