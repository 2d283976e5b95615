"""Item-to-item transitions: a Markov chain of several orders over histories.

Shapes: E events, H histories of a block, N items, P pairs of events.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse import vstack as stack_rows
from torch import Tensor

from recsys.baselines.interactions import NUM_ENTRIES, Interactions, best_of_rows, dense_if_full, slices_of, sum_rows
from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.core.types import Float32Array, Int64Array
from recsys.data.batches.batch import Batch
from recsys.data.dataset import Requests
from recsys.evaluation.relevance import recent_items

_DAY = 86_400


class Transitions:
    """Scores an item by how often it followed the items of the history, at any of several distances.

    An event `d` places after another one of the same user adds `d^-decay` to the count c_ij of their items, and
    `backward` times as much to c_ji. Events of equal time are not counted, because neither follows the other. With n_i
    events of item i, the strength of a transition is `c_ij / (n_i^normalise_from n_j^normalise_to)`. The score of j is
    the sum over the last events of the history of `d^-decay` times the strength, for an event `d` places before the
    request. So `num_steps=1, normalise_from=1` is a Markov chain of the first order. Items that nothing leads to follow
    after all others, most popular first.

    If the data has no order, every item of a history follows every other one once.

    Args:
        num_steps: largest distance of two events that are counted.
        decay: power of the distance by which counts and the history lose weight; 0 for none.
        backward: weight of the reverse direction, 0 to 1.
        normalise_from: power of the number of events of the item that a transition leaves.
        normalise_to: power of the number of events of the item that it reaches; larger values favour rare items.
        num_recent: number of last events of a history that are read; null for `num_steps`.
        half_life_days: age at which a transition counts half, in days before the last event; null for no decay.
        num_neighbours: number of strongest transitions that each item keeps; bounds the memory.
    """

    def __init__(
        self,
        num_steps: int = 20,
        decay: float = 1.0,
        *,
        backward: float = 0.25,
        normalise_from: float = 0.25,
        normalise_to: float = 0.0,
        num_recent: int | None = None,
        half_life_days: float | None = None,
        num_neighbours: int = 1000,
    ) -> None:
        for name, value in (("num_steps", num_steps), ("num_recent", num_recent), ("num_neighbours", num_neighbours)):
            if value is not None and value < 1:
                raise UserError(f"generator.{name}={value}: expected at least 1")
        if half_life_days is not None and half_life_days <= 0:
            raise UserError(f"generator.half_life_days={half_life_days}: expected a positive number of days, or null")
        if not 0 <= backward <= 1:
            raise UserError(f"generator.backward={backward}: expected a number from 0 to 1")
        powers = {"decay": decay, "normalise_from": normalise_from, "normalise_to": normalise_to}
        for name, power in powers.items():
            if not power >= 0:
                raise UserError(f"generator.{name}={power}: expected 0 or more")
        self.num_steps, self.decay, self.backward = num_steps, decay, backward
        self.normalise_from, self.normalise_to = normalise_from, normalise_to
        self.num_recent, self.half_life_days, self.num_neighbours = num_recent, half_life_days, num_neighbours

    def fit(self, events: Interactions) -> None:
        """Count the transitions, in blocks of the items that they leave."""
        resolution = events.dataset.meta.time_resolution
        if self.half_life_days is not None and not resolution.has_clock:
            raise UserError(
                f"generator.half_life_days={self.half_life_days}: data.time={resolution} has no days; leave it at null"
            )
        self._events, self._fallback = events, events.fallback()
        self._has_order = resolution.has_order
        num_events = events.counts()
        powers = (self.normalise_from, self.normalise_to)
        leave, reach = ((num_events ** -float(power)).astype(np.float32) for power in powers)
        pieces = []
        for first, counts in self._ordered(num_events) if self._has_order else self._unordered():
            rows = np.repeat(np.arange(first, first + counts.shape[0]), np.diff(counts.indptr))
            counts.data *= leave[rows] * reach[counts.indices]
            # Entries must be below 2 to be selected.
            largest = counts.data.max(initial=np.finfo(np.float32).tiny)
            counts.data /= largest
            pieces.append(best_of_rows(counts, self.num_neighbours) * largest)
        self._strengths = dense_if_full(stack_rows(pieces).tocsr())

    def rank(self, batch: Batch, requests: Requests, *, k: int, exclude: Ragged | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Rank items for each request; see `recsys.evaluation.ranking.Ranker`."""
        if self._has_order:
            histories = self._weighted(recent_items(self._events.dataset, requests, self.num_recent or self.num_steps))
        else:
            histories = self._events.histories(requests)
        return self._events.rank_by(histories, k, exclude, self._score)

    def _score(self, histories: Any, out: Float32Array) -> None:
        sum_rows(histories, self._strengths, fallback=self._fallback, out=out)

    def _weighted(self, histories: Ragged) -> Any:
        """Return the items of histories weighted by their distances from the request, csr float32 [R, N]."""
        lengths = np.diff(histories.offsets)
        distances = np.repeat(histories.offsets[1:], lengths) - np.arange(len(histories.values))
        known = (histories.values > 0) & (histories.values <= self._events.num_items)
        rows = np.repeat(np.arange(len(histories)), lengths)[known]
        weights = (distances[known] ** -float(self.decay)).astype(np.float32)
        shape = (len(histories), self._events.num_items)
        return csr_matrix((weights, (rows, histories.values[known] - 1)), shape=shape)

    def _unordered(self) -> Iterator[tuple[int, Any]]:
        """Yield the first item of each block and its numbers of common users, csr float32 [block, N]."""
        items = self._events.users.T.tocsr()
        for rows in self._events.blocks(items):
            common = (items[rows] @ self._events.users).tocsr()
            common.data[common.indices == np.repeat(np.arange(rows.start, rows.stop), np.diff(common.indptr))] = 0
            yield rows.start, common

    def _ordered(self, num_events: Int64Array) -> Iterator[tuple[int, Any]]:
        """Yield the first item of each block and its counts c_ij, csr float32 [block, N]."""
        dataset, positions = self._events.dataset, self._events.positions()
        items, time = np.asarray(dataset.item_idx[positions]) - 1, np.asarray(dataset.time[positions])
        worth = np.ones(len(items), np.float32)
        if self.half_life_days is not None:
            worth = (0.5 ** ((time.max() - time) / (_DAY * self.half_life_days))).astype(np.float32)
        # First event of each user, and the position after the last one, for every event.
        lengths = self._events.end - dataset.offsets[:-1]
        ends = np.cumsum(lengths)
        begin, end = np.repeat(ends - lengths, lengths), np.repeat(ends, lengths)
        by_item, ends_of_items = np.argsort(items, kind="stable"), np.cumsum(num_events)
        for rows in slices_of(num_events * (2 * self.num_steps), NUM_ENTRIES):
            own = by_item[ends_of_items[rows.start] - num_events[rows.start] : ends_of_items[rows.stop - 1]]
            left, reached, weights = [], [], []
            for step in (*range(1, self.num_steps + 1), *(range(-self.num_steps, 0) if self.backward else ())):
                at = own[(own + step >= begin[own]) & (own + step < end[own])]
                at = at[time[at] != time[at + step]]
                weight = abs(step) ** -float(self.decay) * (1 if step > 0 else self.backward)
                weights.append(worth[np.maximum(at, at + step)] * np.float32(weight))
                left.append(items[at] - rows.start)
                reached.append(items[at + step])
            cells = np.concatenate(left), np.concatenate(reached)
            shape = (rows.stop - rows.start, self._events.num_items)
            yield rows.start, csr_matrix((np.concatenate(weights), cells), shape=shape)
