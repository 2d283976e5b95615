"""Ranked lists of all generators for the same requests, and the hits among them.

Shapes: U users, G generators, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.core.progress import track
from recsys.core.types import Float64Array
from recsys.data.dataset import Part, PreparedDataset, Requests
from recsys.evaluation.relevance import relevant_items

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
        num_seen: items 1..num_seen have events before the test part; the others are new.
        num_new: number of relevant new items, int64 [U].
    """

    names: tuple[str, ...]
    requests: Requests
    items: npt.NDArray[np.int32]
    hits: npt.NDArray[np.bool_]
    num_relevant: npt.NDArray[np.int64]
    num_seen: int
    num_new: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.num_relevant)

    @property
    def k(self) -> int:
        """Maximum number of candidates of a generator, K."""
        return int(self.items.shape[2])

    def take(self, rows: npt.NDArray[np.int64]) -> Lists:
        """Return the lists of some of the users."""
        requests = Requests(*(column[rows] for column in self.requests))
        items, hits = self.items[rows], self.hits[rows]
        num_relevant, num_new = self.num_relevant[rows], self.num_new[rows]
        return Lists(self.names, requests, items, hits, num_relevant, self.num_seen, num_new)


def recall_among_new(lister: Lister, lists: Lists, dataset: PreparedDataset, *, exclude_seen: bool) -> Float64Array:
    """Return the share of relevant new items in lists of new items alone, 0 for users without any; float64 [U].

    Args:
        lister: gives lists of new items.
        lists: lists of users of the test part.
        dataset: data set of the lists.
        exclude_seen: leave out items of the history.
    """
    recall, rows = np.zeros(len(lists)), np.flatnonzero(lists.num_new)
    found = collect(
        {"new items": lister},
        lambda requests, k: np.zeros((len(requests.user_idx), k), np.int64),
        dataset=dataset,
        part="test",
        requests=lists.take(rows).requests,
        k=lists.k,
        exclude_seen=exclude_seen,
    )
    recall[rows] = found.hits[:, 0].sum(1) / lists.num_new[rows]
    return recall


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
    num_relevant, num_seen = np.diff(relevant.offsets), dataset.meta.num_seen
    owner = np.repeat(np.arange(num_users), num_relevant)
    num_new = np.bincount(owner[relevant.values > num_seen], minlength=num_users)
    return Lists(tuple(listers), requests, items, hits, num_relevant, num_seen, num_new)
