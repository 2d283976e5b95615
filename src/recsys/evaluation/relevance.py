"""What counts as a hit: the items of a part, and those of the history that are left out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recsys.core.columns import Ragged, ragged_positions
from recsys.data.dataset import Part, PreparedDataset, Requests


def seen_items(dataset: PreparedDataset, requests: Requests) -> Ragged:
    """Items of each request's whole history, repeats included (item_idx; unknown users have none)."""
    known = requests.user_idx >= 0
    begin = dataset.offsets[np.where(known, requests.user_idx, 0)]
    lengths = np.where(known, requests.end - begin, 0)
    values = np.asarray(dataset.item_idx[ragged_positions(begin, lengths)])
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]))


def relevant_items(
    dataset: PreparedDataset, part: Part, requests: Requests, exclude_seen: bool = True, rolling: bool = False
) -> Ragged:
    """Distinct items of each request's part, less those of its history where seen items are excluded.

    With `rolling` a request is answered by the one event that follows its history.
    """
    begin = requests.end
    _, part_end = dataset.part_bounds(part)
    end = begin + 1 if rolling else part_end[requests.user_idx]
    lengths = end - begin
    items = np.asarray(dataset.item_idx[ragged_positions(begin, lengths)])
    width = dataset.num_items + 1
    keys = np.unique(_keys(Ragged(items, np.concatenate([[0], np.cumsum(lengths)])), width))
    if exclude_seen:
        keys = keys[~np.isin(keys, _keys(seen_items(dataset, requests), width))]
    counts = np.bincount(keys // width, minlength=len(begin))
    return Ragged((keys % width).astype(np.int32), np.concatenate([[0], np.cumsum(counts)]))


def rolling_requests(dataset: PreparedDataset, part: Part) -> Requests:
    """Every event of `part` as a request of its own, with all events before it as history (what serving does)."""
    begin, end = dataset.part_bounds(part)
    lengths = end - begin
    return Requests(np.repeat(np.arange(dataset.num_users), lengths), ragged_positions(begin, lengths))


def _keys(rows: Ragged, width: int) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(len(rows)), np.diff(rows.offsets)) * width + rows.values
