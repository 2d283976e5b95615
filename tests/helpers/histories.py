"""Training histories written out by hand, whose features tell where an event lies in the flat columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recsys.core.columns import Dense
from recsys.core.schema import FIRST_CODE, Feature, Schema, TimeResolution
from recsys.data.dataset import Meta, PreparedDataset

History = Sequence[tuple[int, int]]


def training_only(users: Sequence[History], worth: str = "seconds", num_items: int | None = None) -> PreparedDataset:
    """All events are training events; users are rows of (item_idx, time).

    `outcome` (known after the event) is the event's position, `context` (known before) is `FIRST_CODE` + position.
    """
    flat = [event for history in users for event in history]
    items = np.array([item for item, _ in flat], np.int32)
    num_items = num_items or int(items.max(initial=1))
    lengths = [len(history) for history in users]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    features = (
        Feature("outcome", "interactions", "numeric", "event", 1),
        Feature("context", "interactions", "categorical", "request", FIRST_CODE + len(flat)),
    )
    return PreparedDataset(
        path=Path(),
        meta=Meta(
            fingerprint="",
            time_resolution=TimeResolution(worth),
            num_users=len(users),
            num_events=len(flat),
            num_trained=num_items,
            num_seen=num_items,
            num_known=num_items,
            num_items=num_items,
            settings={},
        ),
        schema=Schema(features),
        item_idx=items,
        time=np.array([time for _, time in flat], np.int64),
        offsets=offsets,
        train_end=offsets[1:],
        val_end=offsets[1:],
        train_count=np.bincount(items, minlength=num_items + 1).astype(np.int64),
        has_features=np.zeros(num_items + 1, bool),
        columns={
            "interactions.outcome": Dense(np.arange(len(flat), dtype=np.float32)),
            "interactions.context": Dense(FIRST_CODE + np.arange(len(flat), dtype=np.int32)),
        },
    )


def basket_begins(dataset: PreparedDataset) -> np.ndarray:
    """Position of the first event of each event's basket, one event after another."""
    begins = np.arange(dataset.meta.num_events)
    for begin, end in zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True):
        for position in range(begin + 1, end):
            if dataset.meta.time_resolution.has_order and dataset.time[position] == dataset.time[position - 1]:
                begins[position] = begins[position - 1]
    return begins
