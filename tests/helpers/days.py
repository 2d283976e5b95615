"""Data sets of events by day, and evidence for gates made of them."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
from handmade import handmade

from recsys.data.dataset import PreparedDataset
from recsys.operations.gates.event_window import DAY, EventWindow

NUM_ITEMS = 5


def days_of_events(counts: list[int], seed: int = 0, num_users: int = 40) -> PreparedDataset:
    """Return `counts[d]` events on day d, evenly over the day; the last day is test, the one before validation."""
    rng = np.random.default_rng(seed)
    time = np.concatenate([day * DAY + (np.arange(n) + 0.5) * DAY / max(n, 1) for day, n in enumerate(counts)])
    user, item = rng.integers(0, num_users, len(time)), rng.integers(1, NUM_ITEMS + 1, len(time))
    return of_columns(user, item, time.astype(np.int64), len(counts))


def of_columns(user: np.ndarray, item: np.ndarray, time: np.ndarray, num_days: int) -> PreparedDataset:
    """Return a data set of these events; the last of `num_days` days is test, the one before validation."""
    part = np.digitize(time, [(num_days - 2) * DAY, (num_days - 1) * DAY])
    order = np.lexsort((time, part, user))
    user, item, time, part = (values[order] for values in (user, item, time, part))
    num_users = int(user.max()) + 1
    users = [tuple([] for _ in range(3)) for _ in range(num_users)]
    for who, what, which in zip(user, item, part, strict=True):
        users[who][which].append(int(what))
    # Every item is trained.
    users[0] = (sorted({*range(1, NUM_ITEMS + 1)}) + users[0][0], users[0][1], users[0][2])
    data = handmade(users)  # type: ignore[arg-type]
    return dataclasses.replace(data, time=np.concatenate([np.zeros(NUM_ITEMS, np.int64), time]))


def evidence(data: PreparedDataset, end: int | None = None, now: int = 10**9) -> Any:
    return SimpleNamespace(window=EventWindow(data, end=end), now=now)


def status(outcomes: Any) -> list[str]:
    return [outcome.status for outcome in outcomes]
