"""Lists of generators that are written out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recsys.data.dataset import Requests
from recsys.reports.generators.lists import Lists


def made(
    names: Sequence[str],
    users: Sequence[Sequence[Sequence[int]]],
    relevant: Sequence[Sequence[int]],
    k: int,
    num_seen: int = 10**6,
) -> Lists:
    """Lists of users: those of each generator, and the fallback's; `relevant` are the items that each goes on to."""
    items = np.array([[[*row, *[0] * (k - len(row))] for row in rows] for rows in users], np.int32)
    hits = np.array([np.isin(rows, wanted) & (rows > 0) for rows, wanted in zip(items, relevant, strict=True)])
    requests = Requests(np.arange(len(users)), np.zeros(len(users), np.int64))
    num_relevant = np.array([len(wanted) for wanted in relevant])
    num_new = np.array([sum(item > num_seen for item in wanted) for wanted in relevant])
    return Lists(tuple(names), requests, items, hits, num_relevant, num_seen, num_new)
