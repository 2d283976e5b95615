"""Loaders: choose the windows or requests of each batch, their order, and the process that gets them.

The order is a function of (seed, epoch) alone, and the place in it is part of the checkpoint. So a killed run continues
in the middle of an epoch with the batch that comes next.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from recsys.core.columns import ragged_positions
from recsys.core.errors import UserError
from recsys.core.types import Int64Array
from recsys.data.batches.batch import Batch, Windows
from recsys.data.batches.builder import BatchBuilder
from recsys.data.dataset import Requests


class TrainingLoader:
    """Batches of one epoch: one pass over all training events, in random order of windows.

    A history longer than `max_history` is cut at places that change each epoch, so every event is a target once an
    epoch, after histories of different lengths. With `predict_first` the empty history predicts the first event of
    every piece, so it learns from events of any time and not only from the first ones of users.

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
        data, length = builder.dataset, builder.max_history
        num_events = data.train_end - data.offsets[:-1]
        # A user with one event has a target only if the empty history may predict it.
        self._users = np.flatnonzero(num_events >= (1 if builder.predict_first else 2))
        self._begin = data.offsets[:-1][self._users]
        self._num_events = num_events[self._users]
        # Pieces share an event (target of one, first of the next) unless first events are targets themselves.
        self._shared = 0 if builder.predict_first else 1
        self._stride = length + 1 - self._shared
        # The random first cut changes the number of pieces by one from epoch to epoch. The number of batches must not
        # change, so it is that of the worst cut, and windows are distributed evenly, at least one to each process.
        is_cut = self._num_events > length + 1
        most = int(self._num_windows(np.where(is_cut, 1, self._num_events)).sum())
        fewest = int(self._num_windows(np.where(is_cut, self._stride, self._num_events)).sum())
        self._num_batches = min(-(-most // batch_size), fewest // world_size)
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
        rng = np.random.default_rng([self.seed, self._epoch])
        windows = self._cut(rng)
        order = rng.permutation(len(windows.user_idx))
        bounds = np.arange(len(self) + 1) * len(order) // len(self)
        for number in range(self._next_batch, len(self)):
            chosen = order[bounds[number] : bounds[number + 1]][self.rank :: self.world_size]
            self._next_batch = number + 1
            draws = np.random.default_rng([self.seed, self._epoch, number, self.rank])
            yield self.builder.training(windows.take(chosen), draws)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the data."""
        if self._next_batch >= len(self):
            return {"epoch": self._epoch + 1, "next_batch": 0}
        return {"epoch": self._epoch, "next_batch": self._next_batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the place of `state_dict`."""
        self._epoch, self._next_batch = state["epoch"], state["next_batch"]

    def _cut(self, rng: np.random.Generator) -> Windows:
        length, shared = self.builder.max_history, self._shared
        random = rng.integers(1, self._stride + 1, len(self._users))
        # Start of the second piece. A history that fits is one piece.
        second = np.where(self._num_events > length + 1, random, self._num_events)
        num_windows = self._num_windows(second)
        owner = np.repeat(np.arange(len(self._users)), num_windows)
        number = ragged_positions(np.zeros(len(self._users), np.int64), num_windows)
        local_begin = np.where(number == 0, 0, second[owner] + (number - 1) * self._stride)
        local_end = np.where(number == 0, second[owner] - 1 + shared, local_begin + length)
        local_end = np.minimum(local_end, self._num_events[owner] - 1)
        begin = self._begin[owner]
        return Windows(self._users[owner], begin + local_begin, begin + local_end, (number == 0) | (shared == 0))

    def _num_windows(self, second: Int64Array) -> Int64Array:
        further: Int64Array = -(-np.maximum(self._num_events - self._shared - second, 0) // self._stride)
        return 1 + further


class RequestLoader:
    """Pairs of a batch and its requests, in order.

    Args:
        builder: assembles the batches.
        requests: requests to answer.
        batch_size: number of requests in a batch.
        rank: number of this process, which takes every `world_size`-th request.
        world_size: number of processes.
    """

    def __init__(
        self, builder: BatchBuilder, requests: Requests, *, batch_size: int = 1024, rank: int = 0, world_size: int = 1
    ) -> None:
        self.builder = builder
        self.requests = Requests(*(column[rank::world_size] for column in requests))
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.requests.user_idx) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Batch, Requests]]:
        for begin in range(0, len(self.requests.user_idx), self.batch_size):
            chosen = Requests(*(column[begin : begin + self.batch_size] for column in self.requests))
            yield self.builder.requests(chosen), chosen
