"""Base class of the faiss indexes: filters, exclusions and exact scores around an approximate search.

If a filter lets a share p of the items pass, an approximate search must look 1/p as far for the same number of results,
and further if the items near the query are the ones that do not pass. So the search is widened. An index with lists
predicts for each query how far it must look (`recsys.index.lists`). Other indexes look 1/p^2 as far, because with 1/p
recall fell to .91 on such filters. If the inner products with all allowed items cost less than the widened search,
they are computed and the result is exact. A query that still gets too few results is answered exactly too.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.index.allowed import AllowedRows, to_allowed_rows
from recsys.index.ann_index import Effort, check_embeddings, check_search
from recsys.index.exact import Embeddings
from recsys.index.files import STRUCTURE, read_structure, write_structure
from recsys.index.topk import Mask, Rows, pack, to_results

# This number of inner products costs less than any widened search.
ALWAYS_EXACT = 4096
# Candidates in memory at once, which bounds the memory of searches for many results.
CANDIDATES = 1 << 22
# Breadths of filtered queries are rounded up to steps of this ratio.
LEVEL = 1.5


class FaissIndex(Embeddings, ABC):
    """A faiss structure together with the embeddings. Subclasses define construction, search, and the cost of a search.

    Attributes:
        structure: name of the faiss class that the index is stored as.
    """

    structure: str
    refine_factors: tuple[int, ...] = (1,)

    def __init__(self) -> None:
        super().__init__()
        self._ann: Any = None

    @property
    @abstractmethod
    def max_breadth(self) -> int:
        """Highest useful breadth."""

    @abstractmethod
    def least_breadth(self, k: int) -> int:
        """Return the lowest useful breadth for `k` results."""

    @abstractmethod
    def _make(self, embeddings: Float32Array) -> Any:
        """Train and fill the faiss structure. Log a notice and return None if there are too few items for it."""

    @abstractmethod
    def _search_parameters(self, breadth: int, selector: Any) -> Any:
        """Return the parameters of one faiss search."""

    @abstractmethod
    def _cost(self, breadth: int) -> float:
        """Return the number of inner products that cost as much as one search of `breadth`."""

    def _needs_structure(self, num_items: int) -> bool:  # noqa: ARG002
        return True

    @property
    def is_exact(self) -> bool:
        """True if there were too few items for the structure, so that every search is exact."""
        return self._ann is None

    def build(self, embeddings: Float32Array) -> None:
        """Index `embeddings` [N, D] and set a modest effort, which `tune` replaces."""
        check_embeddings(embeddings)
        self._embeddings = embeddings
        self._ann = self._make(np.ascontiguousarray(embeddings))
        self.effort = Effort(min(self.max_breadth, 64), self.refine_factors[-1] if self.refine_factors else 1)

    def save(self, folder: Path) -> list[str]:
        """Write `item_index.faiss` if there is a structure."""
        return [] if self._ann is None else write_structure(self._ann, folder)

    def load(self, folder: Path, embeddings: Float32Array, *, names: Sequence[str]) -> None:
        """Keep the embeddings, and memory-map the structure that `save` wrote."""
        self._embeddings = embeddings
        if STRUCTURE in names:
            self._ann = read_structure(folder, self.structure, embeddings=embeddings)
        elif self._needs_structure(len(embeddings)):
            raise UserError(
                f"{folder}: damaged, a {type(self).__name__} index of {len(embeddings)} items needs {STRUCTURE}; "
                "none is listed"
            )

    def search(
        self, queries: Float32Array, k: int, *, allow: Mask | AllowedRows | None = None, exclude: Ragged | None = None
    ) -> tuple[Float32Array, Rows]:
        """Return scores and rows of the k best allowed items; see `Index.search`."""
        queries = check_search(self, queries, k=k, allow=allow, exclude=exclude)
        allowed = to_allowed_rows(allow)
        if self._ann is None:
            return self._exact(queries, k, allowed=allowed, exclude=exclude)
        if exclude is None or not len(exclude.values):
            return self._search(queries, k, wanted=k, allowed=allowed, exclude=None)
        # Queries are grouped by the number of their exclusions, so that one long history does not widen the search of
        # all.
        excluded = np.diff(exclude.offsets)
        bucket = np.ceil(np.log2(excluded + 1)).astype(np.int64)
        scores = np.empty((len(queries), k), np.float32)
        found = np.empty((len(queries), k), np.int64)
        for size in np.unique(bucket):
            members = np.flatnonzero(bucket == size)
            wanted = k + int(excluded[members].max())
            scores[members], found[members] = self._search(
                queries[members], k, wanted=wanted, allowed=allowed, exclude=exclude.take(members) if size else None
            )
        return scores, found

    def _search(
        self, queries: Float32Array, k: int, *, wanted: int, allowed: AllowedRows | None, exclude: Ragged | None
    ) -> tuple[Float32Array, Rows]:
        """Search each query with the breadth that it needs for `wanted` candidates, and return the best k."""
        num_allowed = self.num_items if allowed is None else allowed.num_allowed
        least = self._widened(wanted, self.num_items)
        few = allowed is not None and (num_allowed <= ALWAYS_EXACT or self._cost(least) >= num_allowed)
        if few or wanted >= num_allowed:
            return self._exact(queries, k, allowed=allowed, exclude=exclude)
        if allowed is None:
            return self._search_at(least, queries, k=k, wanted=wanted, allowed=None, exclude=exclude)
        # Queries of about the same breadth share a search.
        breadths = np.maximum(least, self._breadths(queries, wanted, allowed=allowed))
        level = np.ceil(np.log(breadths / least) / np.log(LEVEL) - 1e-9).astype(np.int64)
        scores = np.empty((len(queries), k), np.float32)
        found = np.empty((len(queries), k), np.int64)
        for number in np.unique(level):
            members = np.flatnonzero(level == number)
            breadth = min(math.ceil(least * LEVEL**number), self.max_breadth)
            rest = None if exclude is None else exclude.take(members)
            scores[members], found[members] = self._search_at(
                breadth, queries[members], k=k, wanted=wanted, allowed=allowed, exclude=rest
            )
        return scores, found

    def _search_at(
        self,
        breadth: int,
        queries: Float32Array,
        *,
        k: int,
        wanted: int,
        allowed: AllowedRows | None,
        exclude: Ragged | None,
    ) -> tuple[Float32Array, Rows]:
        """Find `wanted` candidates for each query and drop the excluded ones.

        Queries that get too few results are answered exactly, and so are all if that is cheaper.
        """
        num_allowed = self.num_items if allowed is None else allowed.num_allowed
        if breadth > self.effort.breadth and self._cost(breadth) >= num_allowed:
            return self._exact(queries, k, allowed=allowed, exclude=exclude)
        # faiss keeps a pointer to the bitmap, which lives as long as `allowed`.
        selector = None if allowed is None else faiss.IDSelectorBitmap(allowed.bitmap)
        parameters = self._search_parameters(breadth, selector)
        rescored = max(self.refine_factors, default=1) > 1
        # Codes rank items only roughly, so a search for few results needs as many candidates as one for `effort.k`.
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
                block_scores[_is_excluded(candidates, exclude.take(members), num_items=self.num_items)] = -np.inf
            scores[begin : begin + len(block)], found[begin : begin + len(block)] = to_results(
                pack(block_scores, candidates), k
            )
        short = np.flatnonzero(found[:, -1] < 0)
        if len(short):
            rest = None if exclude is None else exclude.take(short)
            scores[short], found[short] = self._exact(queries[short], k, allowed=allowed, exclude=rest)
        return scores, found

    def _breadths(self, queries: Float32Array, wanted: int, *, allowed: AllowedRows) -> Rows:
        """Return the breadth that each query needs for `wanted` results; int64 [Q]."""
        return np.full(len(queries), self._widened(wanted, allowed.num_allowed))

    def _widened(self, wanted: int, num_allowed: int) -> int:
        """Return the breadth for `wanted` results among `num_allowed` items."""
        deeper = max(1.0, wanted / self.effort.k)
        wider = self.num_items / max(num_allowed, 1)
        return int(min(math.ceil(self.effort.breadth * deeper * wider**2), self.max_breadth))

    def _exact_scores(self, queries: Float32Array, rows: Rows) -> Float32Array:
        scores = np.empty(rows.shape, np.float32)
        embeddings = np.ascontiguousarray(self._embeddings)
        faiss.fvec_inner_products_by_idx(
            *(faiss.swig_ptr(array) for array in (scores, queries, embeddings, rows)), self.dim, *rows.shape
        )
        return scores


def _is_excluded(candidates: Rows, exclude: Ragged, *, num_items: int) -> Mask:
    """Return a mask [Q, C] of the candidates that are among the excluded rows of their query."""
    query = np.repeat(np.arange(len(exclude)), np.diff(exclude.offsets))
    pairs = np.sort(query * num_items + exclude.values)
    if not len(pairs):
        return np.zeros(candidates.shape, np.bool_)
    wanted = np.arange(len(candidates))[:, None] * num_items + candidates
    position = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    return np.asarray((pairs[position] == wanted) & (candidates >= 0))


def check_at_least(name: str, value: int | None, *, least: int) -> None:
    """Raise a `UserError` if an argument of an index is below its least value."""
    if value is not None and value < least:
        raise UserError(f"index.{name}: found {value}, expected at least {least}")
