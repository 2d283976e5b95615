"""Recent popularity: decayed counts of events of each item, relative to those of an average item.

Shapes: S moments, N items, H half-lives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recsys.core.columns import ragged_positions
from recsys.core.index_time import DAY
from recsys.core.types import Float32Array, Int64Array
from recsys.data.dataset import NO_BIRTH, PreparedDataset

# Events that are added to the counts of an item and of the average, so that few events say little.
SMOOTHING = 1.0
# Half-lives after which an event no longer counts.
_FORGOTTEN = 12


def recency_states(dataset: PreparedDataset, times: Int64Array, half_lives_days: Sequence[float]) -> Float32Array:
    """Return what the events before each moment say about each item; float32 [S, N + 1, H + 1].

    The first H columns are `log((n + k) / (m + k))`: n is the number of events of the item, in which an event counts
    half after the half-life, and m is the number that an average item collected while this item could be shown, counted
    in the same way. An item that was just born has 0. The last column is 1 for items without any event so far.

    Args:
        dataset: events and births. Items without a birth count as shown from the beginning.
        times: int64 [S], seconds since 1970, ascending, whole days apart.
        half_lives_days: days after which an event counts half.
    """
    last = int(times[-1])
    items, when = _events_before(dataset, last)
    begin = int(when[0]) if len(when) else last
    since = max(begin, last - int(_FORGOTTEN * max(half_lives_days) * DAY), min(begin, int(times[0])))
    since = min(since, int(times[0]))
    grid = last - DAY * np.arange((last - since) // DAY + 1, dtype=np.int64)[::-1]
    known = dataset.meta.num_known
    births = np.full(dataset.num_items + 1, NO_BIRTH) if dataset.born is None else dataset.born
    sorted_births = np.sort(births[1 : known + 1])
    bounds = np.searchsorted(when, grid)
    half_lives = np.asarray(half_lives_days, np.float64)[:, None]
    decay = np.exp2(-1.0 / half_lives).astype(np.float32)
    counts, expected = (np.zeros((len(half_lives), dataset.num_items + 1), np.float32) for _ in range(2))
    is_unseen = np.ones(dataset.num_items + 1, np.float32)
    states = np.zeros((len(times), dataset.num_items + 1, len(half_lives) + 1), np.float32)
    stored = {int(moment): place for place, moment in enumerate(times)}
    before = 0
    for place, moment in enumerate(grid):
        shown, at = items[before : bounds[place]], when[before : bounds[place]]
        before = bounds[place]
        counts *= decay
        expected *= decay
        if len(shown):
            weight = np.exp2((at - moment) / (DAY * half_lives))
            alive = np.maximum(np.searchsorted(sorted_births, at, side="right"), 1)
            share = _share_of_day(births, int(moment))
            for row, own in enumerate(weight):
                np.add.at(counts[row], shown, own.astype(np.float32))
                expected[row] += np.float32((own / alive).sum()) * share
            is_unseen[shown] = 0.0
        if int(moment) in stored:
            state = states[stored[int(moment)]]
            state[:, :-1] = np.log((counts + SMOOTHING) / (expected + SMOOTHING)).T
            state[:, -1] = is_unseen
    return states


def _share_of_day(births: Int64Array, moment: int) -> Float32Array:
    """Return the share of the day before `moment` at which each item could be shown."""
    known = births != NO_BIRTH
    days = (moment - np.where(known, births, moment - DAY)) / DAY
    return np.clip(days, 0.0, 1.0).astype(np.float32)


def _events_before(dataset: PreparedDataset, moment: int) -> tuple[Int64Array, Int64Array]:
    """Return items and times of the events before a moment, ascending in time."""
    begin, lengths = dataset.offsets[:-1], np.diff(dataset.offsets)
    positions = ragged_positions(begin, lengths)
    time = np.asarray(dataset.time)[positions]
    kept = np.flatnonzero(time < moment)
    kept = kept[np.argsort(time[kept], kind="stable")]
    return np.asarray(dataset.item_idx)[kept].astype(np.int64), time[kept]
