"""`BatchBuilder`: which events a batch reads, what it predicts and from how much of the history.

Every step is a vectorised slice of the flat columns.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from recsys.data.batch import Batch, Indices, RaggedTensor, Windows, take_or_missing, to_tensor
from recsys.data.columns import Column, Ragged, ragged_positions
from recsys.data.dataset import PreparedDataset, Requests
from recsys.errors import UserError

Order = Literal["time", "random"]


class BatchBuilder:
    """Assembles batches of one prepared data set; every step is a vectorised slice.

    Args:
        dataset: the flat columns.
        max_history: most recent events that a history keeps.
        predict_first: whether a user's first event is a target, predicted from the empty history.
        horizon: an event is predicted from the history up to 1..horizon events before it, at random; 1 for the next
            event. A longer horizon learns what people will do, not what they do next (PinnerFormer, section 3.3).
        gap_days: a target is predicted from events that are older than it by this much at least: what people do when
            they come back, not what they do next in the same session.
        half_life_days: a target counts half when it is so much older than the newest training event; null for all
            alike.
        order: of the events of a training window; `random` draws a new one each time, so that every event is
            predicted from any part of the others, as an autoencoder of the user's items does (Liang et al. 2018,
            section 2.3). Data without time is always read so.

    Raises:
        UserError: a gap or a half-life for data whose time is not in seconds or days; a gap without `predict_first`
            (most targets have nothing so old before them), or in random order.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        max_history: int,
        predict_first: bool = True,
        horizon: int = 1,
        gap_days: float = 0.0,
        half_life_days: float | None = None,
        order: Order = "time",
    ) -> None:
        self.dataset = dataset
        self.max_history = max_history
        self.predict_first = predict_first
        self.horizon = horizon
        self._events = dataset.schema.with_role("event", "request")
        self._requests = dataset.schema.with_role("request")
        self._users = dataset.schema.with_role("profile")
        # In random order nothing comes before anything else: an event is predicted from those drawn before it.
        self._has_baskets = dataset.meta.time != "none" and order == "time"
        has_clock = dataset.meta.time in ("seconds", "day")
        if not has_clock and (gap_days or half_life_days is not None):
            raise UserError(
                f"history.gap_days={gap_days:g}, history.half_life_days={half_life_days} with "
                f"data.time={dataset.meta.time}: expected 0 and null, or timestamps in seconds or days"
            )
        if gap_days and not predict_first:
            raise UserError(f"history.gap_days={gap_days:g}: expected history.predict_first=true with it, found false")
        if gap_days and order == "random":
            raise UserError(f"history.gap_days={gap_days:g}: expected history.order=time with it, found random")
        self._gap = round(gap_days * 86400)
        self._half_life = None if half_life_days is None else half_life_days * 86400.0
        if self._half_life is not None:
            last = dataset.train_end[dataset.train_end > dataset.offsets[:-1]] - 1
            self._newest = int(np.asarray(dataset.time[last]).max(initial=0))

    def training(self, windows: Windows, rng: np.random.Generator | None = None) -> Batch:
        """Every next event of each window as a target, and with `predict_first` the events that it starts with.

        Without, those of the basket that a window starts with are left to the window before: a basket that its end
        cuts through is predicted to the last event. So each event is a target once, however the history is cut.

        Args:
            windows: of training histories.
            rng: draws how far ahead each target is predicted (needed for a horizon beyond the next event), and the
                order of events where the data has none.
        """
        data = self.dataset
        lengths = windows.end - windows.begin
        spans = self._last_targets(windows) - windows.begin + 1
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
            known = np.minimum(known, _num_older(times, window, self._gap))
        keep = known > 0
        if self.predict_first:
            keep |= windows.first[window]
        if self.horizon > 1:
            assert rng is not None
            least = 0 if self.predict_first else 1
            spread = np.clip(known - least + 1, 1, self.horizon)
            known = known - (rng.random(len(known)) * spread).astype(np.int64)
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
            weight=self._weight(times[keep]),
        )

    def _weight(self, times: Indices) -> Tensor | None:
        if self._half_life is None:
            return None
        # Bounded, so that a batch of old targets alone still weighs something.
        age = np.minimum((self._newest - times) / self._half_life, 60.0)
        return torch.from_numpy(np.exp2(-age).astype(np.float32))

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
            positives=RaggedTensor(
                torch.from_numpy(positives.values.astype(np.int64)), torch.from_numpy(positives.offsets)
            ),
            weight=weight,
        )


def _num_older(times: Indices, window: Indices, gap: int) -> Indices:
    """For each event, how many of its window's are older by `gap` at least; both [n], windows ascending, then times."""
    since = times - times.min(initial=0)
    span = since.max(initial=0) + 1
    keys = window * span + since
    starts = np.searchsorted(window, window)
    older = np.searchsorted(keys, window * span + np.maximum(since - gap, -1), side="right")
    return np.asarray(np.maximum(older - starts, 0))
