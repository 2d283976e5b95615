"""Loaders: choose the windows or requests of each batch, their order, and the process that gets them.

The order is a function of (seed, epoch) alone, and the place in it is part of the checkpoint. So a killed run continues
in the middle of an epoch with the batch that comes next.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from recsys.core.errors import UserError
from recsys.core.types import Int64Array
from recsys.data.batches.batch import Batch, Windows
from recsys.data.batches.builder import BatchBuilder
from recsys.data.dataset import Requests

# Users whose histories are cut at a time.
BLOCK = 1 << 20


class TrainingLoader:
    """Batches of one epoch: one pass over all training events, in random order of windows.

    A history longer than `max_history` is cut at places that change each epoch, so every event is a target once an
    epoch, after histories of different lengths. With `predict_first` the empty history predicts the first event of
    every piece, so it learns from events of any time and not only from the first ones of users.

    If the data set is a portion of the users, the batches hold windows of these alone, and processes have batches of
    about the same size.

    Args:
        builder: assembles the batches.
        batch_size: number of windows in a step, of all processes together.
        seed: seed of the order and the cuts.
        rank: number of this process, which takes every `world_size`-th window of each batch.
        world_size: number of processes.

    Raises:
        UserError: If there are no targets, or fewer windows with targets than processes.
    """

    def __init__(
        self, builder: BatchBuilder, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.builder = builder
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self._epoch, self._next_batch = 0, 0
        data = builder.dataset
        # Pieces share an event (target of one, first of the next) unless first events are targets themselves.
        self._shared = 0 if builder.predict_first else 1
        self._stride = builder.max_history + 1 - self._shared
        # A user with one event has a target only if the empty history may predict it.
        self._least = 1 + self._shared
        # The random first cut changes the number of pieces by one from epoch to epoch. The number of batches must not
        # change, so it is that of the worst cut, and windows are distributed evenly, at least one to each process.
        portion = data.portion
        if portion is None:
            self._most, fewest = self._bounds_of(0, data.num_users)
            of_process = fewest // world_size
        else:
            # Each process knows the number of training events of all users, and so the bounds of the others.
            bounds = [self._bounds_of(*users) for users in pairwise(portion.cuts.tolist())]
            self._most, fewest = sum(most for most, _ in bounds), sum(fewest for _, fewest in bounds)
            of_process = min(fewest for _, fewest in bounds)
        self._num_batches = min(-(-self._most // batch_size), of_process)
        if not fewest:
            raise UserError(
                f"history.predict_first={str(builder.predict_first).lower()}: found no user with the "
                f"{1 if builder.predict_first else 2} training events that a target needs; expected true, or users "
                "with more events"
            )
        if not self._num_batches:
            raise UserError(
                f"trainer.devices: found {world_size} processes for {fewest} training histories with targets, expected "
                f"at most {fewest} processes"
            )

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        # A caller may stop after the last batch without requesting another one, so the end of the epoch is detected
        # here.
        self.load_state_dict(self.state_dict())
        # The processes share the windows of all users, or each has windows of its own users alone.
        shared = self.builder.dataset.portion is None
        rng = np.random.default_rng([self.seed, self._epoch, *([] if shared else [self.rank])])
        cut = self._cut(rng)
        order = np.arange(cut.ends[-1] if len(cut.ends) else 0, dtype=cut.ends.dtype)
        rng.shuffle(order)
        bounds = np.arange(len(self) + 1) * len(order) // len(self)
        step = slice(self.rank, None, self.world_size) if shared else slice(None)
        for number in range(self._next_batch, len(self)):
            chosen = order[bounds[number] : bounds[number + 1]][step]
            self._next_batch = number + 1
            draws = np.random.default_rng([self.seed, self._epoch, number, self.rank])
            yield self.builder.training(self._windows(cut, chosen), draws)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the data."""
        if self._next_batch >= len(self):
            return {"epoch": self._epoch + 1, "next_batch": 0}
        return {"epoch": self._epoch, "next_batch": self._next_batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the place of `state_dict`."""
        self._epoch, self._next_batch = state["epoch"], state["next_batch"]

    def _num_events(self, users: slice | Int64Array) -> Int64Array:
        data = self.builder.dataset
        return np.asarray(data.train_end[users] - data.offsets[:-1][users])

    def _bounds_of(self, begin: int, end: int) -> tuple[int, int]:
        """Return the largest and the smallest number of windows of the users `begin..end-1`, whatever the cuts."""
        most = fewest = 0
        portion = self.builder.dataset.portion
        for users in _blocks(begin, end):
            num_events = self._num_events(users) if portion is None else portion.num_trained[users]
            num_events = num_events[num_events >= self._least]
            most += int(self._num_windows(num_events, np.int64(1)).sum())
            fewest += int(self._num_windows(num_events, np.int64(self._stride)).sum())
        return most, fewest

    def _cut(self, rng: np.random.Generator) -> _Cut:
        """Draw the cuts of an epoch. It takes a few bytes a user, because windows are made when they are read."""
        num_users = self.builder.dataset.num_users
        users, seconds, ends, total = [], [], [], 0
        for block in _blocks(0, num_users):
            num_events = self._num_events(block)
            chosen = np.flatnonzero(num_events >= self._least)
            # Start of the second piece.
            second = rng.integers(1, self._stride + 1, len(chosen))
            counts = np.cumsum(self._num_windows(num_events[chosen], second))
            users.append((block.start + chosen).astype(_integers(num_users)))
            seconds.append(second.astype(_integers(self._stride)))
            ends.append((total + counts).astype(_integers(self._most)))
            total += int(counts[-1]) if len(counts) else 0
        return _Cut(*(np.concatenate(parts) for parts in (users, seconds, ends)))

    def _windows(self, cut: _Cut, chosen: npt.NDArray[np.signedinteger]) -> Windows:
        """Return some windows of an epoch by their numbers."""
        length, shared = self.builder.max_history, self._shared
        owner = np.searchsorted(cut.ends, chosen, side="right")
        users = cut.users[owner].astype(np.int64)
        num_events = self._num_events(users)
        second = np.where(num_events > length + 1, cut.second[owner].astype(np.int64), num_events)
        number = chosen.astype(np.int64) - np.where(owner > 0, cut.ends[owner - 1], 0)
        local_begin = np.where(number == 0, 0, second + (number - 1) * self._stride)
        local_end = np.where(number == 0, second - 1 + shared, local_begin + length)
        local_end = np.minimum(local_end, num_events - 1)
        begin = self.builder.dataset.offsets[users]
        return Windows(users, begin + local_begin, begin + local_end, (number == 0) | (shared == 0))

    def _num_windows(self, num_events: Int64Array, second: Int64Array | np.int64) -> Int64Array:
        # A history that fits is one piece.
        left = num_events - self._shared - np.where(num_events > self.builder.max_history + 1, second, num_events)
        further: Int64Array = -(-np.maximum(left, 0) // self._stride)
        return 1 + further


class _Cut(NamedTuple):
    """Cuts of the training histories of an epoch, V users.

    Attributes:
        users: [V], users with targets.
        second: [V], first event of the second window of each, if its history is longer than a window.
        ends: [V], number of windows of these users up to each of them.
    """

    users: npt.NDArray[np.signedinteger]
    second: npt.NDArray[np.signedinteger]
    ends: npt.NDArray[np.signedinteger]


def _integers(highest: int) -> np.dtype[np.signedinteger]:
    """Return the smallest signed integers up to `highest`."""
    return np.min_scalar_type(-1 - highest)


def _blocks(begin: int, end: int) -> Iterator[slice]:
    for first in range(begin, max(end, begin + 1), BLOCK):
        yield slice(first, min(first + BLOCK, end))


class RequestLoader:
    """Pairs of a batch and its requests, in order. Every process has the same number of batches, perhaps empty ones.

    Args:
        builder: assembles the batches.
        requests: requests to answer.
        batch_size: number of requests in a batch.
        rank: number of this process, which takes every `world_size`-th request.
        world_size: number of processes.
        most: number of requests of the process with most; None for that of this share.
    """

    def __init__(
        self,
        builder: BatchBuilder,
        requests: Requests,
        *,
        batch_size: int = 1024,
        rank: int = 0,
        world_size: int = 1,
        most: int | None = None,
    ) -> None:
        self.builder = builder
        self.requests = Requests(*(column[rank::world_size] for column in requests))
        self.batch_size = batch_size
        # Processes that share the rows of a table look them up together, so none may be done before the others.
        self._num_batches = -(-(len(requests.user_idx[::world_size]) if most is None else most) // batch_size)

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[tuple[Batch, Requests]]:
        for begin in range(0, self.batch_size * len(self), self.batch_size):
            chosen = Requests(*(column[begin : begin + self.batch_size] for column in self.requests))
            yield self.builder.requests(chosen), chosen
