"""An index together with items that were added after it was built. Those are searched exactly, and results merged."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np

from recsys.core.columns import Ragged
from recsys.core.types import Float32Array
from recsys.index.ann_index import Searchable
from recsys.index.topk import Rows, exact_search, pack, to_results

A = TypeVar("A")


class ExtendedIndex(Generic[A]):
    """N items of an index, rows 0..N-1, and A added items, rows N..N+A-1.

    Scores of both are inner products, so they can be compared. `allowed` are the rows of `added` [A, D] that may be
    returned, ascending; None for all.
    """

    def __init__(self, index: Searchable[A], added: Float32Array, *, allowed: Rows | None = None) -> None:
        self._index, self._added, self._allowed = index, added, allowed

    def search(
        self, queries: Float32Array, k: int, *, allow: A | None = None, exclude: Ragged | None = None
    ) -> tuple[Float32Array, Rows]:
        """Return scores and rows of the k best items of both, as `Index.search` does; `exclude` holds rows of both.

        If scores are equal, items of the index come first.
        """
        num_items = self._index.num_items
        inside, beside = (exclude, None) if exclude is None else _split(exclude, num_items)
        scores, rows = self._index.search(queries, k, allow=allow, exclude=inside)
        # The index has checked the queries.
        queries = np.ascontiguousarray(queries, np.float32)
        more, more_rows = exact_search(self._added, queries, k=k, rows=self._allowed, exclude=beside)
        more_rows = np.where(more_rows < 0, -1, more_rows + num_items)
        return to_results(pack(np.concatenate([scores, more], 1), np.concatenate([rows, more_rows], 1)), k)


def _split(exclude: Ragged, num_items: int) -> tuple[Ragged, Ragged]:
    """Return the rows of the index, and the rows of the added items counted from the first of them."""
    owner = np.repeat(np.arange(len(exclude)), np.diff(exclude.offsets))
    is_inside = exclude.values < num_items
    parts = []
    for chosen, first in ((is_inside, 0), (~is_inside, num_items)):
        counts = np.bincount(owner[chosen], minlength=len(exclude))
        parts.append(Ragged(exclude.values[chosen] - np.int32(first), np.concatenate([[0], np.cumsum(counts)])))
    return parts[0], parts[1]
