"""The part of an index that one host holds: every `count`-th row. Callers use the rows of the whole corpus.

Shapes: Q queries, N items of the whole corpus, K results.
"""

from __future__ import annotations

import numpy as np

from recsys.core.columns import Ragged
from recsys.core.types import Float32Array
from recsys.index.allowed import AllowedRows
from recsys.index.ann_index import Index
from recsys.index.inverted_file import IVFFlat
from recsys.index.topk import Mask, Rows, exact_search

# Names of the classes, as descriptions of indexes have them, that a host can divide in little time.
DIVISIBLE = ("Exact", "IVFFlat", "IVFSQ8")


def divide(whole: Index, embeddings: Float32Array, *, number: int, count: int) -> Index:
    """Return an index of the rows with row % count == number alone, numbered anew; `embeddings` are theirs.

    Lists keep what their training has learned. An index without lists is built again.
    """
    # A release has the local index of one that fills a database, and the one that an `Auto` has chosen.
    whole = getattr(whole, "local", whole)
    whole = getattr(whole, "chosen", whole)
    if isinstance(whole, IVFFlat):
        return whole.part(embeddings, number=number, count=count)
    part: Index = type(whole)(**whole.parameters())
    part.build(embeddings)
    part.effort = whole.effort._replace(breadth=min(whole.effort.breadth, part.max_breadth))
    return part


class ShardIndex:
    """Rows with row % count == number of an index of N items; only these are in memory.

    Args:
        inner: index of the rows of the shard alone.
        embeddings: float32, embeddings of these rows.
        number: number of the shard.
        count: number of shards.
        num_items: number of items of the whole corpus, N.
    """

    def __init__(self, inner: Index, embeddings: Float32Array, *, number: int, count: int, num_items: int) -> None:
        self._inner, self._embeddings = inner, embeddings
        self.number, self.count, self.num_items = number, count, num_items
        self.effort, self.is_exact, self.dim = inner.effort, inner.is_exact, inner.dim

    @classmethod
    def of(cls, whole: Index, embeddings: Float32Array, *, number: int, count: int) -> ShardIndex:
        """Return a shard of an index whose class is one of `DIVISIBLE`.

        Args:
            whole: index of all items; its embeddings are not read.
            embeddings: float32, embeddings of the rows of the shard.
            number: number of the shard.
            count: number of shards.
        """
        inner = divide(whole, embeddings, number=number, count=count)
        return cls(inner, embeddings, number=number, count=count, num_items=whole.num_items)

    def search(
        self, queries: Float32Array, k: int, *, allow: Mask | AllowedRows | None = None, exclude: Ragged | None = None
    ) -> tuple[Float32Array, Rows]:
        """Return scores and rows of the k best allowed items of the shard; see `Index.search`."""
        scores, rows = self._inner.search(queries, k, allow=self._allowed(allow), exclude=self._excluded(exclude))
        return scores, np.where(rows < 0, rows, rows * self.count + self.number)

    def exact(
        self, queries: Float32Array, k: int, *, allow: AllowedRows | None, exclude: Ragged | None
    ) -> tuple[Float32Array, Rows]:
        """Return the same by exact search."""
        allowed = self._allowed(allow)
        rows = None if allowed is None else allowed.rows
        scores, found = exact_search(self._embeddings, queries, k=k, rows=rows, exclude=self._excluded(exclude))
        return scores, np.where(found < 0, found, found * self.count + self.number)

    def _allowed(self, allow: Mask | AllowedRows | None) -> AllowedRows | None:
        if allow is None:
            return None
        mask = allow.mask if isinstance(allow, AllowedRows) else allow
        own = AllowedRows(mask[self.number :: self.count])
        return None if own.num_allowed == own.num_items else own

    def _excluded(self, exclude: Ragged | None) -> Ragged | None:
        if exclude is None:
            return None
        owner = np.repeat(np.arange(len(exclude)), np.diff(exclude.offsets))
        own = exclude.values % self.count == self.number
        counts = np.bincount(owner[own], minlength=len(exclude))
        return Ragged(exclude.values[own] // np.int32(self.count), np.concatenate([[0], np.cumsum(counts)]))
