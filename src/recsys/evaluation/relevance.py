"""The relevant items of requests, and the items of their histories that are left out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from recsys.core.columns import Ragged, ragged_positions
from recsys.core.types import Int64Array
from recsys.data.dataset import Part, PreparedDataset, Requests

# Events from which a history is long.
LONG = 1000


def seen_items(dataset: PreparedDataset, requests: Requests) -> Ragged:
    """Return the item_idx of each request's whole history. Unknown users have none.

    Short histories are returned with repeats. Of a long one each item is returned once, because several requests of its
    user (each event of a test part is one) would repeat all events.
    """
    known = requests.user_idx >= 0
    begin = dataset.offsets[np.where(known, requests.user_idx, 0)]
    lengths = np.where(known, requests.end - begin, 0)
    is_long = lengths > LONG
    found = dict(_distinct_items(dataset, requests, lengths=lengths, rows=np.flatnonzero(is_long)))
    sizes = lengths.copy()
    for row, items in found.items():
        sizes[row] = len(items)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    values = np.empty(offsets[-1], np.int32)
    short = ragged_positions(begin[~is_long], lengths[~is_long])
    values[ragged_positions(offsets[:-1][~is_long], lengths[~is_long])] = dataset.item_idx[short]
    for row, items in found.items():
        values[offsets[row] : offsets[row + 1]] = items
    return Ragged(values, offsets)


def recent_items(dataset: PreparedDataset, requests: Requests, num_recent: int) -> Ragged:
    """Return the item_idx of the last `num_recent` events of each history, with repeats. Unknown users have none."""
    known = requests.user_idx >= 0
    begin = dataset.offsets[np.where(known, requests.user_idx, 0)]
    lengths = np.minimum(np.where(known, requests.end - begin, 0), num_recent)
    values = np.asarray(dataset.item_idx[ragged_positions(requests.end - lengths, lengths)])
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]))


def _distinct_items(
    dataset: PreparedDataset, requests: Requests, *, lengths: Int64Array, rows: Int64Array
) -> Iterator[tuple[int, npt.NDArray[np.int32]]]:
    """Yield some requests and the distinct items of their histories. The events of a user are read once."""
    for user in np.unique(requests.user_idx[rows]):
        own = rows[requests.user_idx[rows] == user]
        begin = dataset.offsets[user]
        items, first = np.unique(dataset.item_idx[begin : begin + lengths[own].max()], return_index=True)
        for row in own:
            yield int(row), items[first < lengths[row]]


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
