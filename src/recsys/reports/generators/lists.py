"""Ranked lists of all generators for the same requests, and what of them was hit.

Shapes: U users, G generators, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.data.dataset import Part, PreparedDataset, Requests
from recsys.evaluation.relevance import relevant_items

# The list that serves whoever is left with nothing: what is popular. It is the last of all, and no generator.
FALLBACK = "popularity for the rest"
_BLOCK = 1024


# item_idx [R, k] for R requests, best first, 0 where there is no further one; none twice, and none that is to be left
# out.
Lister = Callable[[Requests, int], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Lists:
    """What every generator gives each user.

    Attributes:
        names: of the generators; the fallback has none.
        requests: of the users that have something to find, U.
        items: item_idx, 0 where a list has ended, and the fallback last; int32 [U, G + 1, K].
        hits: which of them the user went on to engage with; bool [U, G + 1, K].
        num_relevant: items that could be found, those outside the corpus included; int64 [U].
    """

    names: tuple[str, ...]
    requests: Requests
    items: npt.NDArray[np.int32]
    hits: npt.NDArray[np.bool_]
    num_relevant: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.num_relevant)

    @property
    def k(self) -> int:
        """Candidates that each generator may give, K."""
        return int(self.items.shape[2])

    def take(self, rows: npt.NDArray[np.int64]) -> Lists:
        """Some of the users."""
        requests = Requests(*(column[rows] for column in self.requests))
        return Lists(self.names, requests, self.items[rows], self.hits[rows], self.num_relevant[rows])


def answerable(dataset: PreparedDataset, part: Part, exclude_seen: bool, max_users: int | None, seed: int) -> Requests:
    """Requests of the users that have something to find in `part`; at most `max_users` of them, drawn at random."""
    requests = dataset.requests(part)
    relevant = relevant_items(dataset, part, requests, exclude_seen)
    rows = np.flatnonzero(np.diff(relevant.offsets))
    if max_users is not None and len(rows) > max_users:
        rows = np.sort(np.random.default_rng(seed).choice(rows, max_users, replace=False))
    return Requests(*(column[rows] for column in requests))


def collect(
    listers: Mapping[str, Lister],
    fallback: Lister,
    dataset: PreparedDataset,
    part: Part,
    requests: Requests,
    k: int,
    exclude_seen: bool,
) -> Lists:
    """Ask every generator for `k` candidates for each request, and compare them with what came in `part`."""
    relevant = relevant_items(dataset, part, requests, exclude_seen)
    num_users, width = len(requests.user_idx), dataset.num_items + 1
    items = np.zeros((num_users, len(listers) + 1, k), np.int32)
    hits = np.zeros(items.shape, bool)
    for number, lister in enumerate((*listers.values(), fallback)):
        items[:, number] = lister(requests, k)
    for begin in range(0, num_users, _BLOCK):
        block = items[begin : begin + _BLOCK]
        wanted = relevant.take(np.arange(begin, begin + len(block)))
        owner = np.repeat(np.arange(len(block)), np.diff(wanted.offsets))
        found = np.isin(np.arange(len(block))[:, None, None] * width + block, owner * width + wanted.values)
        # A model can know items that the data does not have; their numbers are beyond its own.
        hits[begin : begin + _BLOCK] = found & (block > 0) & (block < width)
    return Lists(tuple(listers), requests, items, hits, np.diff(relevant.offsets))
