"""The same list for everyone: the items with the most events."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recsys.baselines.interactions import Interactions
from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.data.batches.batch import Batch
from recsys.data.dataset import Requests

_DAY = 86_400


class Popularity:
    """Ranks items by the number of their events, optionally of a recent window or with a decay.

    Args:
        window_days: length of the window before the last event in days; null for all events.
        half_life_days: age at which an event counts half, in days before the last event; null for no decay.
    """

    def __init__(self, window_days: float | None = None, half_life_days: float | None = None) -> None:
        for name, days in (("window_days", window_days), ("half_life_days", half_life_days)):
            if days is not None and days <= 0:
                raise UserError(f"generator.{name}={days}: expected a positive number of days, or null")
        self.window_days, self.half_life_days = window_days, half_life_days

    def fit(self, events: Interactions) -> None:
        """Count the events."""
        dataset, positions = events.dataset, events.positions()
        weights = None
        if self.window_days is not None or self.half_life_days is not None:
            if not dataset.meta.time_resolution.has_clock:
                raise UserError(
                    "generator.window_days, generator.half_life_days: "
                    f"data.time={dataset.meta.time_resolution} has no days; "
                    "leave both at null, or use data.time=seconds|day"
                )
            time = np.asarray(dataset.time[positions])
            age = (time.max() - time) / _DAY
            weights = np.ones(len(age)) if self.half_life_days is None else 0.5 ** (age / self.half_life_days)
            if self.window_days is not None:
                weights[age > self.window_days] = 0
        items = np.asarray(dataset.item_idx[positions])
        scores = np.bincount(items, weights, minlength=events.num_items + 1)[1:]
        # Items without events in the window are ordered by all of their events, so that no list ends early.
        order = np.lexsort((-events.counts(), -scores))
        self._best = torch.from_numpy(order + 1)
        self._scores = torch.from_numpy(scores[order].astype(np.float32))
        self._rank = np.full(dataset.num_items + 1, len(order))
        self._rank[order + 1] = np.arange(len(order))

    def rank(self, batch: Batch, requests: Requests, *, k: int, exclude: Ragged | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Rank items for each request; see `recsys.evaluation.ranking.Ranker`."""
        num_requests = len(requests.user_idx)
        ranks = np.broadcast_to(np.arange(k), (num_requests, k))
        if exclude is not None:
            ranks = ranks + self._skipped(exclude, k)
        beyond = torch.from_numpy(ranks >= len(self._best))
        chosen = torch.from_numpy(np.minimum(ranks, len(self._best) - 1))
        return self._scores[chosen].masked_fill(beyond, -torch.inf), self._best[chosen].masked_fill(beyond, 0)

    def _skipped(self, exclude: Ragged, k: int) -> np.ndarray:
        """Return the number of excluded items that precede each result, int64 [R, k].

        The excluded ranks of a request e_0 < e_1 < ... push result j down by the number of i with e_i - i <= j. So no
        scores are compared, and the cost does not depend on the size of the corpus.
        """
        width = len(self._best) + 1
        row = np.repeat(np.arange(len(exclude)), np.diff(exclude.offsets))
        keys = np.unique(row * width + self._rank[exclude.values])
        row, rank = keys // width, keys % width
        # Entries are sorted by row and rank, so an entry's place in its row is its distance from the row's first entry.
        first = np.searchsorted(row, np.arange(len(exclude)))
        from_result = rank - (np.arange(len(keys)) - first[row])
        inside = (from_result < k) & (rank < width - 1)
        cells = row[inside] * k + from_result[inside]
        return np.bincount(cells, minlength=len(exclude) * k).reshape(len(exclude), k).cumsum(1)
