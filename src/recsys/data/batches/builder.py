"""`BatchBuilder`: which events a batch reads, what it predicts and from how much of the history.

Every step is a vectorised slice of the flat columns.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recsys.core.columns import Column, Ragged, ragged_positions
from recsys.data.batches.batch import Batch, Indices, RaggedTensor, Windows, take_or_missing, to_tensor
from recsys.data.batches.targets import DAY, Objective, TargetWeights, num_older
from recsys.data.dataset import PreparedDataset, Requests


class BatchBuilder:
    """Assembles batches of one prepared data set; every step is a vectorised slice.

    Args:
        dataset: the flat columns.
        max_history: most recent events that a history keeps.
        predict_first: whether a user's first event is a target, predicted from the empty history.
        objective: what training predicts from how much of a history.
        max_exposures: the last so many of what a user was shown in the time of a training window come with it.

    Raises:
        UserError: the objective does not go with the data or with `predict_first`.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        max_history: int,
        predict_first: bool = True,
        objective: Objective | None = None,
        max_exposures: int = 0,
    ) -> None:
        objective = objective or Objective()
        objective.check(dataset.meta.time_resolution, predict_first)
        self.dataset, self.objective = dataset, objective
        self.max_history, self.max_exposures = max_history, max_exposures
        self.predict_first = predict_first
        self._events = dataset.schema.with_role("event", "request")
        self._requests = dataset.schema.with_role("request")
        self._users = dataset.schema.with_role("profile")
        # In random order nothing comes before anything else: an event is predicted from those drawn before it.
        self._has_baskets = dataset.meta.time_resolution.has_order and objective.order == "time"
        self._gap = round(objective.gap_days * DAY)
        self._weights = TargetWeights(dataset, objective)

    def training(self, windows: Windows, rng: np.random.Generator | None = None) -> Batch:
        """Every next event of each window as a target, and with `predict_first` the events that it starts with.

        Without, those of the basket that a window starts with are left to the window before: a basket that its end
        cuts through is predicted to the last event. So each event is a target once, however the history is cut.

        Args:
            windows: of training histories.
            rng: draws how far ahead each target is predicted (needed for a horizon or a window), and the order of
                events where the data has none.
        """
        data = self.dataset
        lengths = windows.end - windows.begin
        last = self._last_targets(windows)
        spans = last - windows.begin + 1
        positions = ragged_positions(windows.begin, spans)
        window = np.repeat(np.arange(len(spans)), spans)
        local = positions - windows.begin[window]
        if not self._has_baskets and rng is not None:
            # Without time the order of the file means nothing, so nothing may be learned from it.
            keys = np.where((local == 0) & (not self.predict_first), -1.0, rng.random(len(local)))
            positions = positions[np.lexsort((keys, window))]
        items = np.asarray(data.item_idx[positions]).astype(np.int64)
        times = np.asarray(data.time[positions])
        known = local.copy()
        if self._has_baskets:
            # A target sees the events before its basket: the run of equal times that it belongs to.
            starts_run = np.ones(len(positions), bool)
            starts_run[1:] = (times[1:] != times[:-1]) | (local[1:] == 0)
            flat = np.arange(len(positions))
            run = np.maximum.accumulate(np.where(starts_run, flat, 0))
            known = local[run]
        if self._gap:
            known = np.minimum(known, num_older(times, window, self._gap))
        keep = known > 0
        if self.predict_first:
            keep |= windows.first[window]
        known = self._places(known, times, window, rng)
        is_event = local < lengths[window]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        history = window[keep]
        return self._batch(
            event_positions=positions[is_event],
            items=items[is_event],
            times=times[is_event],
            lengths=lengths,
            user_idx=windows.user_idx,
            query=starts[history] + history + known[keep],
            history=history,
            request_rows=positions[keep],
            target_idx=items[keep],
            positives=self._positives(windows.user_idx),
            exposures=self._exposures(windows, last),
            weight=self._weights(positions[keep]),
        )

    def _places(self, known: Indices, times: Indices, window: Indices, rng: np.random.Generator | None) -> Indices:
        """How many events the query of each target sees, of the `known` ones before it."""
        horizon, days = self.objective.horizon, self.objective.window_days
        if horizon == 1 and days is None:
            return known
        assert rng is not None
        if days is None:
            spread = np.clip(known - (0 if self.predict_first else 1) + 1, 1, horizon)
        else:
            # The last event that is seen lies in the days before the target, where there is one.
            spread = np.maximum(known - num_older(times, window, round(days * DAY) + 1), 1)
        return known - (rng.random(len(known)) * spread).astype(np.int64)

    def _exposures(self, windows: Windows, last: Indices) -> Ragged | None:
        """What the users were shown since the event before each window, up to its last target."""
        exposures, time = self.dataset.exposures, self.dataset.time
        if exposures is None or not self.max_exposures:
            return None
        is_first = windows.begin == self.dataset.offsets[windows.user_idx]
        before = np.asarray(time[np.where(is_first, windows.begin, windows.begin - 1)])
        after = np.where(is_first, np.iinfo(np.int64).min, before)
        # An item that is no training target would learn from its exposures alone.
        return exposures.between(
            windows.user_idx, after, np.asarray(time[last]), self.max_exposures, self.dataset.num_trained
        )

    def _last_targets(self, windows: Windows) -> Indices:
        last = windows.end.copy()
        if self.predict_first or not self._has_baskets:
            return last
        time, limit = self.dataset.time, self.dataset.train_end[windows.user_idx]
        basket = np.asarray(time[windows.end])
        # Within one basket a window predicts nothing, unless it is the first.
        waiting = np.flatnonzero((last + 1 < limit) & (windows.first | (np.asarray(time[windows.begin]) != basket)))
        while len(waiting):
            waiting = waiting[np.asarray(time[last[waiting] + 1]) == basket[waiting]]
            last[waiting] += 1
            waiting = waiting[last[waiting] + 1 < limit[waiting]]
        return last

    def requests(self, requests: Requests, columns: dict[str, Column] | None = None) -> Batch:
        """One query a request, after its whole history (the last `max_history` events).

        Request features come from `columns` where given; else from the event that follows the history, if there is one
        (its request features are known before the answer); else they are missing.
        """
        data = self.dataset
        known = requests.user_idx >= 0
        users = np.where(known, requests.user_idx, 0)
        begin = np.maximum(data.offsets[users], requests.end - self.max_history)
        lengths = np.where(known, requests.end - begin, 0)
        positions = ragged_positions(begin, lengths)
        has_next = known & (requests.end < data.offsets[users + 1])
        history = np.arange(len(users))
        return self._batch(
            event_positions=positions,
            items=np.asarray(data.item_idx[positions]).astype(np.int64),
            times=np.asarray(data.time[positions]),
            lengths=lengths,
            user_idx=requests.user_idx,
            query=np.cumsum(lengths) + history,
            history=history,
            request_rows=np.where(has_next, requests.end, -1),
            target_idx=np.zeros(0, np.int64),
            positives=Ragged(np.zeros(0, np.int32), np.zeros(len(users) + 1, np.int64)),
            request_columns=columns,
        )

    def _positives(self, users: Indices) -> Ragged:
        begin, lengths = self.dataset.offsets[users], self.dataset.train_end[users] - self.dataset.offsets[users]
        values = np.asarray(self.dataset.item_idx[ragged_positions(begin, lengths)])
        return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]))

    def _batch(
        self,
        event_positions: Indices,
        items: Indices,
        times: Indices,
        lengths: Indices,
        user_idx: Indices,
        query: Indices,
        history: Indices,
        request_rows: Indices,
        target_idx: Indices,
        positives: Ragged,
        exposures: Ragged | None = None,
        weight: Tensor | None = None,
        request_columns: dict[str, Column] | None = None,
    ) -> Batch:
        columns = self.dataset.columns
        given = request_columns or {}
        return Batch(
            item_idx=torch.from_numpy(items),
            time=torch.from_numpy(times),
            lengths=lengths,
            user_idx=torch.from_numpy(np.asarray(user_idx)),
            events={f.name: to_tensor(columns[f.key].take(event_positions)) for f in self._events},
            users={f.name: to_tensor(take_or_missing(columns[f.key], user_idx)) for f in self._users},
            query=torch.from_numpy(query),
            history=torch.from_numpy(history),
            requests={
                f.name: to_tensor(given.get(f.name) or take_or_missing(columns[f.key], request_rows))
                for f in self._requests
            },
            target_idx=torch.from_numpy(target_idx),
            positives=_as_ragged(positives),
            exposures=None if exposures is None else _as_ragged(exposures),
            weight=weight,
        )


def _as_ragged(items: Ragged) -> RaggedTensor:
    return RaggedTensor(torch.from_numpy(items.values.astype(np.int64)), torch.from_numpy(items.offsets))
