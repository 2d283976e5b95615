"""Slices of items by popularity, and of users by whether they have training events."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recsys.data.dataset import PreparedDataset

ITEM_SLICES = ("head", "mid", "tail", "cold_items")
# Users without and with training events.
USER_SLICES = ("cold_users", "warm_users")


def item_slices(dataset: PreparedDataset) -> npt.NDArray[np.int64]:
    """Return the slice of each item as a position in `ITEM_SLICES`; int64 [N + 1].

    Head, mid and tail are the items with the first 50%, the next 30% and the last 20% of training events, most frequent
    first. An item that crosses a bound belongs to the slice in which its events begin. Cold items have no training
    event.
    """
    counts = dataset.train_count
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    share = before / max(counts.sum(), 1)
    slices = np.empty(len(counts), np.int64)
    slices[order] = np.digitize(share, [0.5, 0.8])
    slices[counts == 0] = ITEM_SLICES.index("cold_items")
    return slices


def cold_users(dataset: PreparedDataset) -> npt.NDArray[np.bool_]:
    """Return a mask bool [U] of the users without training events."""
    return np.asarray(dataset.train_end == dataset.offsets[:-1])
