"""Ranked lists of all generators for the same requests, and the hits among them.

Shapes: U users, G generators, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.core.progress import track
from recsys.data.dataset import Part, PreparedDataset, Requests
from recsys.evaluation.relevance import relevant_items

# Name of the list that fills up blends after all generators. It is not a generator.
FALLBACK = "popularity for the rest"
_BLOCK = 1024


# Returns item_idx [R, k] for R requests, best first, without repeated or excluded items, and 0 after the end of a list.
Lister = Callable[[Requests, int], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Lists:
    """Candidates that every generator gives each user.

    Attributes:
        names: names of the generators; the fallback has none.
        requests: users with relevant items, U.
        items: item_idx, 0 after the end of a list; the fallback comes last. int32 [U, G + 1, K].
        hits: whether the user engaged with the candidate later; bool [U, G + 1, K].
        num_relevant: number of relevant items, including those outside the corpus; int64 [U].
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
        """Maximum number of candidates of a generator, K."""
        return int(self.items.shape[2])

    def take(self, rows: npt.NDArray[np.int64]) -> Lists:
        """Return the lists of some of the users."""
        requests = Requests(*(column[rows] for column in self.requests))
        return Lists(self.names, requests, self.items[rows], self.hits[rows], self.num_relevant[rows])


def answerable(
    dataset: PreparedDataset, part: Part, *, exclude_seen: bool, max_users: int | None, seed: int
) -> Requests:
    """Return the requests of users with relevant items in `part`, a random sample of at most `max_users`."""
    requests = dataset.requests(part)
    relevant = relevant_items(dataset, part, requests=requests, exclude_seen=exclude_seen)
    rows = np.flatnonzero(np.diff(relevant.offsets))
    if max_users is not None and len(rows) > max_users:
        rows = np.sort(np.random.default_rng(seed).choice(rows, max_users, replace=False))
    return Requests(*(column[rows] for column in requests))


def collect(
    listers: Mapping[str, Lister],
    fallback: Lister,
    *,
    dataset: PreparedDataset,
    part: Part,
    requests: Requests,
    k: int,
    exclude_seen: bool,
) -> Lists:
    """Collect `k` candidates per generator and request, and mark those that the user engaged with in `part`."""
    relevant = relevant_items(dataset, part, requests=requests, exclude_seen=exclude_seen)
    num_users, width = len(requests.user_idx), dataset.num_items + 1
    items = np.zeros((num_users, len(listers) + 1, k), np.int32)
    hits = np.zeros(items.shape, bool)
    everyone = (*listers.values(), fallback)
    for number, lister in enumerate(track(everyone, f"candidates on {part}", total=len(everyone), unit="generators")):
        items[:, number] = lister(requests, k)
    for begin in range(0, num_users, _BLOCK):
        block = items[begin : begin + _BLOCK]
        wanted = relevant.take(np.arange(begin, begin + len(block)))
        owner = np.repeat(np.arange(len(block)), np.diff(wanted.offsets))
        found = np.isin(np.arange(len(block))[:, None, None] * width + block, owner * width + wanted.values)
        # A model may return items that the data set does not have; their numbers are `width` or higher.
        hits[begin : begin + _BLOCK] = found & (block > 0) & (block < width)
    return Lists(tuple(listers), requests, items, hits, np.diff(relevant.offsets))
