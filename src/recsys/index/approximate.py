"""What the faiss indexes share: filters, exclusions and exact scores around an approximate search.

Where a filter lets a share p of the items pass, an approximate search must look 1/p as far for as many results, and
further where the items near the query are the ones that do not pass. So its effort is widened: where the index has
lists, as far as each query needs (`recsys.index.lists`), else by 1/p^2 (with 1/p, recall fell to .91 on such filters).
From the point on where the inner products with all allowed items cost less, these are computed, and the answer is
exact. A query that still comes back short is answered exactly too.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from recsys.core.columns import Ragged
from recsys.core.types import Float32Array
from recsys.index.allowed import AllowedRows, to_allowed_rows
from recsys.index.ann_index import Effort, check_embeddings, check_search
from recsys.index.engine import faiss
from recsys.index.files import save_index
from recsys.index.topk import Mask, Rows, exact_search, pack, to_results

# So few inner products cost less than any widened search.
ALWAYS_EXACT = 4096
# Candidates that are held at once: bounds the memory of long answers.
CANDIDATES = 1 << 22
# Breadths of filtered queries are rounded up to steps of this ratio.
LEVEL = 1.5


class FaissIndex(ABC):
    """A faiss structure beside the embeddings. Subclasses say how it is made, searched, and what a search costs."""

    refine_factors: tuple[int, ...] = (1,)

    def __init__(self) -> None:
        self.effort = Effort(0)
        self._embeddings: Float32Array = np.empty((0, 0), np.float32)
        self._ann: Any = None

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """Arguments of the constructor."""

    @property
    @abstractmethod
    def max_breadth(self) -> int:
        """Full effort."""

    @abstractmethod
    def least_breadth(self, k: int) -> int:
        """The least effort that means anything for `k` results."""

    @abstractmethod
    def _make(self, embeddings: Float32Array) -> Any:
        """Train and fill the faiss structure; None where there are too few items for it, after a notice."""

    @abstractmethod
    def _search_parameters(self, breadth: int, selector: Any) -> Any:
        """Parameters of one faiss search."""

    @abstractmethod
    def _cost(self, breadth: int) -> float:
        """Inner products that cost as much as one search of `breadth`."""

    @property
    def is_exact(self) -> bool:
        """Whether there were too few items for the structure, so that every search is exact."""
        return self._ann is None

    @property
    def num_items(self) -> int:
        """N."""
        return len(self._embeddings)

    @property
    def dim(self) -> int:
        """D."""
        return int(self._embeddings.shape[1])

    def build(self, embeddings: Float32Array) -> None:
        """Index `embeddings` [N, D] at a modest effort; `tune` finds the right one."""
        check_embeddings(embeddings)
        self._embeddings = embeddings
        self._ann = self._make(np.ascontiguousarray(embeddings))
        self.effort = Effort(min(self.max_breadth, 64), self.refine_factors[-1] if self.refine_factors else 1)

    def restore(self, embeddings: Float32Array, ann: Any) -> None:
        """Take the parts that `load_index` read."""
        self._embeddings = embeddings
        self._ann = ann

    def save(self, folder: Path) -> list[str]:
        """Write `item_index.json` and `item_index.faiss`."""
        return save_index(self, folder, self._ann)

    def search(
        self, queries: Float32Array, k: int, allow: Mask | AllowedRows | None = None, exclude: Ragged | None = None
    ) -> tuple[Float32Array, Rows]:
        """(scores, rows) of the k best allowed items; see `Index.search`."""
        queries = check_search(self.num_items, self.dim, queries, k, allow, exclude)
        allowed = to_allowed_rows(allow)
        if self._ann is None:
            return exact_search(self._embeddings, queries, k, None if allowed is None else allowed.rows, exclude)
        if exclude is None or not len(exclude.values):
            return self._search(queries, k, k, allowed, None)
        # Queries are taken by how much they exclude, so that one long history does not widen the search of all.
        excluded = np.diff(exclude.offsets)
        bucket = np.ceil(np.log2(excluded + 1)).astype(np.int64)
        scores = np.empty((len(queries), k), np.float32)
        found = np.empty((len(queries), k), np.int64)
        for size in np.unique(bucket):
            members = np.flatnonzero(bucket == size)
            wanted = k + int(excluded[members].max())
            scores[members], found[members] = self._search(
                queries[members], k, wanted, allowed, exclude.take(members) if size else None
            )
        return scores, found

    def _search(
        self, queries: Float32Array, k: int, wanted: int, allowed: AllowedRows | None, exclude: Ragged | None
    ) -> tuple[Float32Array, Rows]:
        """Search each query as broadly as it needs."""
        num_allowed = self.num_items if allowed is None else allowed.num_allowed
        least = self._widened(wanted, self.num_items)
        few = allowed is not None and (num_allowed <= ALWAYS_EXACT or self._cost(least) >= num_allowed)
        if few or wanted >= num_allowed:
            return exact_search(self._embeddings, queries, k, None if allowed is None else allowed.rows, exclude)
        if allowed is None:
            return self._search_at(least, queries, k, wanted, None, exclude)
        # Queries of about the same breadth share a search.
        breadths = np.maximum(least, self._breadths(queries, wanted, allowed))
        level = np.ceil(np.log(breadths / least) / np.log(LEVEL) - 1e-9).astype(np.int64)
        scores = np.empty((len(queries), k), np.float32)
        found = np.empty((len(queries), k), np.int64)
        for number in np.unique(level):
            members = np.flatnonzero(level == number)
            breadth = min(math.ceil(least * LEVEL**number), self.max_breadth)
            rest = None if exclude is None else exclude.take(members)
            scores[members], found[members] = self._search_at(breadth, queries[members], k, wanted, allowed, rest)
        return scores, found

    def _search_at(
        self,
        breadth: int,
        queries: Float32Array,
        k: int,
        wanted: int,
        allowed: AllowedRows | None,
        exclude: Ragged | None,
    ) -> tuple[Float32Array, Rows]:
        """Take `wanted` candidates each, drop the excluded, and answer exactly where that is cheaper or came short."""
        num_allowed = self.num_items if allowed is None else allowed.num_allowed
        if breadth > self.effort.breadth and self._cost(breadth) >= num_allowed:
            return exact_search(self._embeddings, queries, k, None if allowed is None else allowed.rows, exclude)
        # faiss keeps a pointer to the bitmap, which `allowed` holds for as long as the search takes.
        selector = None if allowed is None else faiss.IDSelectorBitmap(allowed.bitmap)
        parameters = self._search_parameters(breadth, selector)
        rescored = max(self.refine_factors, default=1) > 1
        # Of few results too, the codes tell only roughly which they are.
        num_candidates = max(wanted, self.effort.k) * self.effort.refine if rescored else wanted
        num_candidates = min(num_candidates, num_allowed)
        scores = np.empty((len(queries), k), np.float32)
        found = np.empty((len(queries), k), np.int64)
        step = max(1, CANDIDATES // num_candidates)
        for begin in range(0, len(queries), step):
            block = queries[begin : begin + step]
            block_scores, candidates = self._ann.search(block, num_candidates, params=parameters)
            if rescored:
                block_scores = self._exact_scores(block, candidates)
            if exclude is not None:
                members = np.arange(begin, begin + len(block))
                block_scores[_is_excluded(candidates, exclude.take(members), self.num_items)] = -np.inf
            scores[begin : begin + len(block)], found[begin : begin + len(block)] = to_results(
                pack(block_scores, candidates), k
            )
        short = np.flatnonzero(found[:, -1] < 0)
        if len(short):
            rest = None if exclude is None else exclude.take(short)
            rows = None if allowed is None else allowed.rows
            scores[short], found[short] = exact_search(self._embeddings, queries[short], k, rows, rest)
        return scores, found

    def _breadths(self, queries: Float32Array, wanted: int, allowed: AllowedRows) -> Rows:
        """Breadth for `wanted` results of each query; int64 [Q]."""
        return np.full(len(queries), self._widened(wanted, allowed.num_allowed))

    def _widened(self, wanted: int, num_allowed: int) -> int:
        """Breadth for `wanted` results among `num_allowed` items."""
        deeper = max(1.0, wanted / self.effort.k)
        wider = self.num_items / max(num_allowed, 1)
        return int(min(math.ceil(self.effort.breadth * deeper * wider**2), self.max_breadth))

    def _exact_scores(self, queries: Float32Array, rows: Rows) -> Float32Array:
        """Inner products with the candidates [Q, C], read where they lie; -inf for row -1."""
        scores = np.empty(rows.shape, np.float32)
        embeddings = np.ascontiguousarray(self._embeddings)
        faiss.fvec_inner_products_by_idx(
            *(faiss.swig_ptr(array) for array in (scores, queries, embeddings, rows)), self.dim, *rows.shape
        )
        return scores


def _is_excluded(candidates: Rows, exclude: Ragged, num_items: int) -> Mask:
    """Which candidates [Q, C] are among the excluded rows of their query."""
    query = np.repeat(np.arange(len(exclude)), np.diff(exclude.offsets))
    pairs = np.sort(query * num_items + exclude.values)
    if not len(pairs):
        return np.zeros(candidates.shape, np.bool_)
    wanted = np.arange(len(candidates))[:, None] * num_items + candidates
    position = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    return np.asarray((pairs[position] == wanted) & (candidates >= 0))
