"""The relevant items of requests, and the items of their histories that are left out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recsys.core.columns import Ragged, ragged_positions
from recsys.data.dataset import Part, PreparedDataset, Requests


def seen_items(dataset: PreparedDataset, requests: Requests) -> Ragged:
    """Return the item_idx of each request's whole history, with repeats. Unknown users have none."""
    known = requests.user_idx >= 0
    begin = dataset.offsets[np.where(known, requests.user_idx, 0)]
    lengths = np.where(known, requests.end - begin, 0)
    values = np.asarray(dataset.item_idx[ragged_positions(begin, lengths)])
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]))


def relevant_items(
    dataset: PreparedDataset, part: Part, *, requests: Requests, exclude_seen: bool = True, rolling: bool = False
) -> Ragged:
    """Return the distinct items of each request's part.

    Args:
        dataset: data set of the requests.
        part: part whose events are relevant.
        requests: requests, as positions in the data set.
        exclude_seen: leave out items of the history.
        rolling: count only the event that follows the history.
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
    """Return one request for each event of a part, with all events before it as history, as in serving."""
    begin, end = dataset.part_bounds(part)
    lengths = end - begin
    return Requests(np.repeat(np.arange(dataset.num_users), lengths), ragged_positions(begin, lengths))


def _keys(rows: Ragged, width: int) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(len(rows)), np.diff(rows.offsets)) * width + rows.values
