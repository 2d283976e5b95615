"""Prepared data sets in memory, given by the events of each user: no files and no preparation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recsys.core.columns import Dense, Ragged
from recsys.core.schema import FIRST_CODE, Feature, Schema, TimeResolution
from recsys.data.dataset import Meta, PreparedDataset

DAY = 86_400
Parts = tuple[Sequence[int], Sequence[int], Sequence[int]]
History = Sequence[tuple[int, int]]


def handmade(
    users: Sequence[Parts], time_resolution: str = "seconds", path: Path = Path(), num_known: int = 0
) -> PreparedDataset:
    """Data set of users with (train, val, test) items, one day apart, without features.

    Args:
        users: item_idx of each user's parts, numbered in the order of the layout.
        time_resolution: value of `data.time`.
        path: folder in which `refit` finds the counts of the validation part, if it is called.
        num_known: number of known items, if more than those seen before the test part.
    """
    items = np.array([item for parts in users for part in parts for item in part], np.int32)
    sizes = np.array([[len(part) for part in parts] for parts in users], np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes.sum(1))])
    train = [item for parts in users for item in parts[0]]
    val = [item for parts in users for item in parts[1]]
    num_trained, num_seen = len({*train}), len({*train, *val})
    num_known = max(num_known, num_seen)
    num_items = max(num_known, int(items.max(initial=0)))
    assert {*train} == {*range(1, num_trained + 1)}
    assert {*train, *val} == {*range(1, num_seen + 1)}
    if path != Path():
        (path / "items").mkdir(exist_ok=True)
        np.save(path / "items/val_count.npy", np.bincount(val, minlength=num_items + 1))
    time = (np.arange(len(items)) - np.repeat(offsets[:-1], np.diff(offsets))) * DAY
    return _dataset(items, time, sizes, time_resolution, (num_trained, num_seen, num_known, num_items), path)


def training_only(
    users: Sequence[History], time_resolution: str = "seconds", num_items: int | None = None
) -> PreparedDataset:
    """Data set of training events alone, whose features are the positions of the events in the flat columns.

    `outcome` (known after the event) is the position, `context` (known before) is `FIRST_CODE` + position.

    Args:
        users: (item_idx, time) of each user's events.
        time_resolution: value of `data.time`.
        num_items: number of items, all of which count as trained.
    """
    flat = [event for history in users for event in history]
    items = np.array([item for item, _ in flat], np.int32)
    num_items = num_items or int(items.max(initial=1))
    sizes = np.array([[len(history), 0, 0] for history in users], np.int64)
    time = np.array([time for _, time in flat], np.int64)
    features = {
        Feature("outcome", "interactions", "numeric", "event", 1): np.arange(len(flat), dtype=np.float32),
        Feature("context", "interactions", "categorical", "request", FIRST_CODE + len(flat)): FIRST_CODE
        + np.arange(len(flat), dtype=np.int32),
    }
    return _dataset(items, time, sizes, time_resolution, (num_items,) * 4, features=features)


def _dataset(
    items: np.ndarray,
    time: np.ndarray,
    sizes: np.ndarray,
    time_resolution: str,
    num_items: tuple[int, int, int, int],
    path: Path = Path(),
    features: dict[Feature, np.ndarray] | None = None,
) -> PreparedDataset:
    """`sizes` [U, 3]: events of each user's parts; `num_items`: trained, seen, known and all items."""
    offsets = np.concatenate([[0], np.cumsum(sizes.sum(1))]).astype(np.int64)
    train_end = offsets[:-1] + sizes[:, 0]
    is_train = np.arange(len(items)) < np.repeat(train_end, np.diff(offsets))
    num_trained, num_seen, num_known, num_all = num_items
    return PreparedDataset(
        path=path,
        meta=Meta(
            fingerprint="",
            time_resolution=TimeResolution(time_resolution),
            num_users=len(sizes),
            num_events=len(items),
            num_trained=num_trained,
            num_seen=num_seen,
            num_known=num_known,
            num_items=num_all,
            settings={},
        ),
        schema=Schema(tuple(features or ())),
        item_idx=items,
        time=time,
        offsets=offsets,
        train_end=train_end,
        val_end=train_end + sizes[:, 1],
        train_count=np.bincount(items[is_train], minlength=num_all + 1),
        has_features=np.zeros(num_all + 1, bool),
        columns={feature.key: Dense(values) for feature, values in (features or {}).items()},
    )


def ragged(*rows: Sequence[int]) -> Ragged:
    """Rows of integers."""
    values = np.array([value for row in rows for value in row], np.int32)
    return Ragged(values, np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64))


def random_users(rng: np.random.Generator, num_users: int, num_items: int, longest: int = 12) -> list[Parts]:
    """Users with repeats, empty parts and Zipf popularity, items numbered in the order of the layout."""
    parts = [
        [(num_items ** rng.random(rng.integers(0, longest))).astype(int) for _ in range(3)] for _ in range(num_users)
    ]
    counts = [np.bincount(np.concatenate([user[part] for user in parts]), minlength=num_items + 1) for part in range(3)]
    run = np.select([counts[0] > 0, counts[1] > 0, counts[2] > 0], [0, 1, 2], 3)
    order = np.lexsort((-counts[0], run))
    new = np.empty(num_items + 1, int)
    new[order] = np.arange(1, num_items + 2)
    return [(new[a].tolist(), new[b].tolist(), new[c].tolist()) for a, b, c in parts]
