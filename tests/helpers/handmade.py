"""Prepared data sets that are written out by hand: no files, no preparation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recsys.core.columns import Ragged
from recsys.core.schema import Schema, TimeResolution
from recsys.data.dataset import Meta, PreparedDataset

DAY = 86_400
Parts = tuple[Sequence[int], Sequence[int], Sequence[int]]


def handmade(
    users: Sequence[Parts], worth: str = "seconds", path: Path = Path(), num_known: int = 0
) -> PreparedDataset:
    """Data set of users with (train, val, test) items, one day apart; item_idx must be in the order of the layout.

    Args:
        users: item_idx of each user's parts.
        worth: what time is worth.
        path: where `refit` finds the counts of the validation part, if it is called.
        num_known: items that are known, if more than those seen before the test part.
    """
    flat = np.array([item for parts in users for part in parts for item in part], np.int32)
    sizes = np.array([[len(part) for part in parts] for parts in users], np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes.sum(1))])
    train = [item for parts in users for item in parts[0]]
    val = [item for parts in users for item in parts[1]]
    num_trained, num_seen = len({*train}), len({*train, *val})
    num_known = max(num_known, num_seen)
    num_items = max(num_known, int(flat.max(initial=0)))
    assert {*train} == {*range(1, num_trained + 1)}
    assert {*train, *val} == {*range(1, num_seen + 1)}
    (path / "items").mkdir(exist_ok=True) if path != Path() else None
    if path != Path():
        np.save(path / "items/val_count.npy", np.bincount(val, minlength=num_items + 1))
    return PreparedDataset(
        path=path,
        meta=Meta(
            fingerprint="",
            time_resolution=TimeResolution(worth),
            num_users=len(users),
            num_events=len(flat),
            num_trained=num_trained,
            num_seen=num_seen,
            num_known=num_known,
            num_items=num_items,
            settings={},
        ),
        schema=Schema(()),
        item_idx=flat,
        time=(np.arange(len(flat)) - np.repeat(offsets[:-1], np.diff(offsets))) * DAY,
        offsets=offsets,
        train_end=offsets[:-1] + sizes[:, 0],
        val_end=offsets[:-1] + sizes[:, 0] + sizes[:, 1],
        train_count=np.bincount(train, minlength=num_items + 1),
        has_features=np.zeros(num_items + 1, bool),
        columns={},
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
