"""The new events and the events before them, which the data gates compare. E events, in the order of the data set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from recsys.core.errors import UserError
from recsys.data.dataset import PreparedDataset

DAY = 86_400
NO_TIMES = "the data set has no times"
# Above this many days, times are of another unit: days without events are not listed, since they would fill memory.
_MAX_DAYS = 100_000
Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


class EventWindow:
    """New events of a data set, and the reference events before them.

    If the data set has times, the window is a stretch of time. Otherwise it is the test part, and the reference is the
    validation part.

    Args:
        dataset: data set to look at.
        begin: second at which the new events begin; None for the start of the test part.
        end: second at which the new events should end; None for the end of the last day.
        reference_days: length of the reference in days, at most, unless the window is longer.
    """

    def __init__(
        self, dataset: PreparedDataset, begin: int | None = None, *, end: int | None = None, reference_days: int = 28
    ) -> None:
        self.dataset = dataset
        self.has_times = dataset.meta.time_resolution.has_clock
        self.time: Ints = np.asarray(dataset.time)
        place = np.arange(len(self.time))
        self.is_test: Mask = place >= np.repeat(dataset.val_end, np.diff(dataset.offsets))
        self.is_train: Mask = place < np.repeat(dataset.train_end, np.diff(dataset.offsets))
        self.begin, self.end = 0, 0
        if not self.has_times:
            self.new: Mask = self.is_test
            self.before: Mask = ~self.is_test & ~self.is_train
            return
        self.begin = int(self.time[self.is_test].min()) if begin is None else begin
        self.end = (int(self.time.max()) // DAY + 1) * DAY if end is None else end
        self.new = self.time >= self.begin
        # The reference begins at midnight, so that its days can be compared with each other.
        first = (self.begin - max(reference_days * DAY, self.end - self.begin)) // DAY * DAY
        self.before = (self.time < self.begin) & (self.time >= first)

    @cached_property
    def user(self) -> Ints:
        """user_idx of each event, [E]."""
        return np.repeat(np.arange(self.dataset.num_users), np.diff(self.dataset.offsets))

    @cached_property
    def item(self) -> Ints:
        """item_idx of each event, [E]."""
        return np.asarray(self.dataset.item_idx).astype(np.int64)

    @cached_property
    def days(self) -> tuple[Ints, Ints]:
        """Days since 1970, from the first of the reference to the last of the window, and the events on each."""
        times = self.time[(self.before | self.new) & (self.time < self.end)]
        if not len(times):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        first, last = int(times.min()) // DAY, (self.end - 1) // DAY
        if last - first > _MAX_DAYS:
            days, counts = np.unique(times // DAY, return_counts=True)
            return days, counts
        days = np.arange(first, last + 1)
        return days, np.bincount(times // DAY - first, minlength=len(days))

    @cached_property
    def users_by_day(self) -> Ints:
        """Number of users with events on each of the `days`."""
        rows = (self.before | self.new) & (self.time < self.end)
        days, num_users = self.days[0], max(1, self.dataset.num_users)
        user_days = np.unique(self.time[rows] // DAY * num_users + self.user[rows])
        places = np.searchsorted(days, user_days // num_users)
        return np.bincount(places, minlength=len(days))


def as_days(key: str, days: Sequence[str]) -> Ints:
    """Return days such as 2026-11-24 as days since 1970.

    Raises:
        UserError: If one is not a date.
    """
    try:
        return np.array([*days], "datetime64[D]").astype(np.int64)
    except ValueError as error:
        raise UserError(f"{key}: found {[*days]}, expected days such as [2026-11-24]") from error


def share(which: Mask, among: Mask) -> float:
    """Return the share of the events `among` that are also `which`; 0 if there are none."""
    return float(which[among].mean()) if among.any() else 0.0
