"""`BatchBuilder`: assembles batches as vectorised slices of the flat columns."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recsys.core.columns import Column, Ragged, distinct, ragged_positions
from recsys.core.types import Int64Array
from recsys.data.batches.batch import Batch, RaggedTensor, Windows, take_or_missing, to_tensor
from recsys.data.batches.targets import DAY, TargetSampling, TargetWeights, num_older
from recsys.data.dataset import PreparedDataset, Requests

# The distinct items of users with more training events than this are kept from batch to batch.
LONG = 1000
# So many items are kept at most, 80 MB; then the kept ones are dropped.
MOST_KEPT = 10_000_000


class _Reads(NamedTuple):
    """Rows of the flat columns that a batch reads; shapes as in `Batch`.

    Attributes:
        positions: int64 [T], absolute positions of the events.
        item_idx: int64 [T], items of the events.
        time: int64 [T], times of the events.
        lengths: int64 [H], events of each history.
        user_idx: int64 [H], user of each history.
        query: int64 [P], packed query position of each target or request.
        history: int64 [P], history of each target or request.
        requests: int64 [P], position of the event that holds the request features, -1 if they are missing.
    """

    positions: Int64Array
    item_idx: Int64Array
    time: Int64Array
    lengths: Int64Array
    user_idx: Int64Array
    query: Int64Array
    history: Int64Array
    requests: Int64Array


class BatchBuilder:
    """Assembles batches of one prepared data set.

    Args:
        dataset: prepared data.
        max_history: number of most recent events that a history keeps.
        predict_first: whether a user's first event is a target, predicted from the empty history.
        target_sampling: choice of the targets, the length of their histories and their weights; the next event, with
            equal weights, by default.
        max_exposures: maximum number of exposures, the latest ones in the time of a training window, that become
            negatives.

    Raises:
        UserError: If the target sampling does not fit the data or `predict_first`.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        max_history: int,
        *,
        predict_first: bool = True,
        target_sampling: TargetSampling | None = None,
        max_exposures: int = 0,
    ) -> None:
        sampling = target_sampling or TargetSampling()
        sampling.check(dataset.meta.time_resolution, predict_first=predict_first)
        self.dataset, self.target_sampling = dataset, sampling
        self.max_history, self.max_exposures = max_history, max_exposures
        self.predict_first = predict_first
        self._events = dataset.schema.with_role("event", "request")
        self._requests = dataset.schema.with_role("request")
        self._users = dataset.schema.with_role("profile")
        # In random order baskets have no meaning: an event is predicted from all events drawn before it.
        self._has_baskets = dataset.meta.time_resolution.has_order and sampling.order == "time"
        self._gap = round(sampling.gap_days * DAY)
        self._weights = TargetWeights(dataset, sampling)
        self._items_of_long: dict[int, Int64Array] = {}
        self._num_kept = 0

    def on(self, portion: PreparedDataset) -> BatchBuilder:
        """Return the same builder for the events of some of the users."""
        own = copy.copy(self)
        own.dataset, own._weights = portion, self._weights.on(portion)
        own._items_of_long, own._num_kept = {}, 0
        return own

    def training(self, windows: Windows, rng: np.random.Generator | None = None) -> Batch:
        """Return a batch whose targets are all next events of each window, so each event is a target once.

        With `predict_first` the first events of a window are targets too. Without it, the basket at a window's start
        belongs to the window before: that one predicts a basket completely even if its end cuts through it.

        Args:
            windows: pieces of training histories.
            rng: draws how far ahead each target is predicted (required for a horizon or a window of days), and the
                order of events if the data has none.
        """
        data = self.dataset
        lengths = windows.end - windows.begin
        last = self._last_targets(windows)
        spans = last - windows.begin + 1
        positions = ragged_positions(windows.begin, spans)
        window = np.repeat(np.arange(len(spans)), spans)
        local = positions - windows.begin[window]
        if not self._has_baskets and rng is not None:
            # Without times the order of the file has no meaning and must not be learned.
            keys = np.where((local == 0) & (not self.predict_first), -1.0, rng.random(len(local)))
            positions = positions[np.lexsort((keys, window))]
        items = np.asarray(data.item_idx[positions]).astype(np.int64)
        times = np.asarray(data.time[positions])
        known = local.copy()
        if self._has_baskets:
            # A target is predicted from the events before its basket (the run of equal times that it belongs to).
            starts_run = np.ones(len(positions), bool)
            starts_run[1:] = (times[1:] != times[:-1]) | (local[1:] == 0)
            flat = np.arange(len(positions))
            run = np.maximum.accumulate(np.where(starts_run, flat, 0))
            known = local[run]
        if self._gap:
            known = np.minimum(known, num_older(times, window, gap=self._gap))
        keep = known > 0
        if self.predict_first:
            keep |= windows.first[window]
        known = self._draw_known(known, times, window=window, rng=rng)
        is_event = local < lengths[window]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        history = window[keep]
        users, owner = np.unique(windows.user_idx, return_inverse=True)
        reads = _Reads(
            positions=positions[is_event],
            item_idx=items[is_event],
            time=times[is_event],
            lengths=lengths,
            user_idx=windows.user_idx,
            query=starts[history] + history + known[keep],
            history=history,
            requests=positions[keep],
        )
        return self._batch(
            reads,
            target_idx=items[keep],
            target_time=times[keep],
            positives=self._positives(users),
            owner=owner,
            exposures=self._exposures(windows, last),
            weight=self._weights(positions[keep]),
        )

    def requests(self, requests: Requests, columns: dict[str, Column] | None = None) -> Batch:
        """Return a batch with one query a request, after its whole history (the last `max_history` events).

        Args:
            requests: users and the ends of their histories.
            columns: request features by name. A feature that is missing here comes from the event after the history
                (its request features are known before the answer), or is missing if no event follows.
        """
        data = self.dataset
        known = requests.user_idx >= 0
        users = np.where(known, requests.user_idx, 0)
        begin = np.maximum(data.offsets[users], requests.end - self.max_history)
        lengths = np.where(known, requests.end - begin, 0)
        positions = ragged_positions(begin, lengths)
        has_next = known & (requests.end < data.offsets[users + 1])
        history = np.arange(len(users))
        reads = _Reads(
            positions=positions,
            item_idx=np.asarray(data.item_idx[positions]).astype(np.int64),
            time=np.asarray(data.time[positions]),
            lengths=lengths,
            user_idx=requests.user_idx,
            query=np.cumsum(lengths) + history,
            history=history,
            requests=np.where(has_next, requests.end, -1),
        )
        nothing = np.zeros(0, np.int64)
        positives = Ragged(np.zeros(0, np.int32), np.zeros(1, np.int64))
        return self._batch(
            reads, target_idx=nothing, target_time=nothing, positives=positives, owner=nothing, request_columns=columns
        )

    def _draw_known(
        self, known: Int64Array, times: Int64Array, *, window: Int64Array, rng: np.random.Generator | None
    ) -> Int64Array:
        """Draw the length of each target's history, at most `known`."""
        horizon, days = self.target_sampling.horizon, self.target_sampling.window_days
        if horizon == 1 and days is None:
            return known
        assert rng is not None
        if days is None:
            spread = np.clip(known - (0 if self.predict_first else 1) + 1, 1, horizon)
        else:
            # The history ends at a random event of the days before the target, or just before it if those days have no
            # event.
            spread = np.maximum(known - num_older(times, window, gap=round(days * DAY) + 1), 1)
        return known - (rng.random(len(known)) * spread).astype(np.int64)

    def _exposures(self, windows: Windows, last: Int64Array) -> Ragged | None:
        """Return the exposures of the users since the event before each window, up to its last target."""
        exposures, time = self.dataset.exposures, self.dataset.time
        if exposures is None or not self.max_exposures:
            return None
        is_first = windows.begin == self.dataset.offsets[windows.user_idx]
        before = np.asarray(time[np.where(is_first, windows.begin, windows.begin - 1)])
        after = np.where(is_first, np.iinfo(np.int64).min, before)
        return exposures.between(
            windows.user_idx,
            after=after,
            until=np.asarray(time[last]),
            most=self.max_exposures,
            # Items without training events would be trained by their exposures alone.
            num_items=self.dataset.num_trained,
        )

    def _last_targets(self, windows: Windows) -> Int64Array:
        last = windows.end.copy()
        if self.predict_first or not self._has_baskets:
            return last
        time, limit = self.dataset.time, self.dataset.train_end[windows.user_idx]
        basket = np.asarray(time[windows.end])
        # A window within one basket predicts nothing, unless it is the first of its history.
        waiting = np.flatnonzero((last + 1 < limit) & (windows.first | (np.asarray(time[windows.begin]) != basket)))
        while len(waiting):
            waiting = waiting[np.asarray(time[last[waiting] + 1]) == basket[waiting]]
            last[waiting] += 1
            waiting = waiting[last[waiting] + 1 < limit[waiting]]
        return last

    def _positives(self, users: Int64Array) -> Ragged:
        """Return the distinct training items of each user, ascending."""
        data = self.dataset
        width = data.num_items + 1
        begin, lengths = data.offsets[users], data.train_end[users] - data.offsets[users]
        is_long = lengths > LONG
        row = np.repeat(np.flatnonzero(~is_long), lengths[~is_long])
        items = data.item_idx[ragged_positions(begin[~is_long], lengths[~is_long])]
        # The items of long histories are ordered already, so the sort takes no time for them.
        of_long = (row * width + self._items_of(int(users[row])) for row in np.flatnonzero(is_long))
        rows, values = np.divmod(distinct(np.concatenate([row * width + items, *of_long])), width)
        counts = np.bincount(rows, minlength=len(users))
        return Ragged(values.astype(np.int32), np.concatenate([[0], np.cumsum(counts)]))

    def _items_of(self, user: int) -> Int64Array:
        if user not in self._items_of_long:
            events = self.dataset.item_idx[self.dataset.offsets[user] : self.dataset.train_end[user]]
            items = np.unique(events).astype(np.int64)
            if self._num_kept + len(items) > MOST_KEPT:
                self._items_of_long.clear()
                self._num_kept = 0
            self._items_of_long[user] = items
            self._num_kept += len(items)
        return self._items_of_long[user]

    def _batch(
        self,
        reads: _Reads,
        *,
        target_idx: Int64Array,
        target_time: Int64Array,
        positives: Ragged,
        owner: Int64Array,
        exposures: Ragged | None = None,
        weight: Tensor | None = None,
        request_columns: dict[str, Column] | None = None,
    ) -> Batch:
        columns = self.dataset.columns
        given = request_columns or {}
        return Batch(
            item_idx=torch.from_numpy(reads.item_idx),
            time=torch.from_numpy(reads.time),
            lengths=reads.lengths,
            user_idx=torch.from_numpy(np.asarray(reads.user_idx)),
            events={f.name: to_tensor(columns[f.key].take(reads.positions)) for f in self._events},
            users={f.name: to_tensor(take_or_missing(columns[f.key], reads.user_idx)) for f in self._users},
            query=torch.from_numpy(reads.query),
            history=torch.from_numpy(reads.history),
            requests={
                f.name: to_tensor(given.get(f.name) or take_or_missing(columns[f.key], reads.requests))
                for f in self._requests
            },
            target_idx=torch.from_numpy(target_idx),
            target_time=torch.from_numpy(target_time),
            positives=_to_tensors(positives),
            owner=torch.from_numpy(owner),
            exposures=None if exposures is None else _to_tensors(exposures),
            weight=weight,
        )


def _to_tensors(items: Ragged) -> RaggedTensor:
    return RaggedTensor(torch.from_numpy(items.values.astype(np.int64)), torch.from_numpy(items.offsets))
