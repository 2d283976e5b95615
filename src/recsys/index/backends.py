"""The faiss indexes. Constructors take what shapes the structure; the search effort is measured by `tune`."""

from __future__ import annotations

import logging
import math
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.index.allowed import AllowedRows
from recsys.index.approximate import FaissIndex
from recsys.index.engine import faiss
from recsys.index.lists import InvertedLists
from recsys.index.topk import Rows

log = logging.getLogger(__name__)

# Points per cluster that k-means sees; more costs time and finds hardly better lists.
TRAIN_POINTS = 64
# 4-bit codes: 16 centroids need some points each, and tiny corpora are faster to search in full.
MIN_PQ_ITEMS = 1024


class FaissFlat(FaissIndex):
    """faiss' exhaustive search: the yardstick for throughput. Exact, up to which of several equal scores come last."""

    is_exact = True
    max_breadth = 0
    refine_factors: tuple[int, ...] = ()

    def parameters(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {}

    def least_breadth(self, k: int) -> int:  # noqa: ARG002
        """0: there is no effort to choose."""
        return 0

    def _make(self, embeddings: Float32Array) -> Any:
        index = faiss.IndexFlatIP(embeddings.shape[1])
        index.add(embeddings)
        return index

    def _search_parameters(self, breadth: int, selector: Any) -> Any:  # noqa: ARG002
        return faiss.SearchParameters(sel=selector) if selector is not None else None

    def _cost(self, breadth: int) -> float:  # noqa: ARG002
        return self.num_items


class HNSW(FaissIndex):
    """A navigable graph: fastest for single queries. Grows slowly, and cannot drop items.

    Args:
        m: links of a node (twice as many at the bottom level).
        ef_construction: candidates looked at to link one item.
        build_threads: 1 gives the same graph each time; more are faster, and the graph depends on their timing.
    """

    def __init__(self, m: int = 32, ef_construction: int = 100, build_threads: int = 1) -> None:
        super().__init__()
        _at_least("m", m, 2)
        _at_least("ef_construction", ef_construction, 1)
        _at_least("build_threads", build_threads, 1)
        self.m = m
        self.ef_construction = ef_construction
        self.build_threads = build_threads

    @property
    def max_breadth(self) -> int:
        """Candidates kept; beyond 16 thousand exact search is the better answer."""
        return min(self.num_items, 16384)

    def least_breadth(self, k: int) -> int:
        """Faiss keeps no fewer candidates than results."""
        return min(k, self.max_breadth)

    def parameters(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {"m": self.m, "ef_construction": self.ef_construction, "build_threads": self.build_threads}

    def _make(self, embeddings: Float32Array) -> Any:
        index = faiss.IndexHNSWFlat(embeddings.shape[1], self.m, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = self.ef_construction
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(self.build_threads)
        try:
            index.add(embeddings)
        finally:
            faiss.omp_set_num_threads(threads)
        return index

    def _search_parameters(self, breadth: int, selector: Any) -> Any:
        return faiss.SearchParametersHNSW(efSearch=breadth, sel=selector)

    def _cost(self, breadth: int) -> float:
        # About m new neighbours for each candidate, each a jump in memory that costs some sequential products.
        return 3.0 * self.m * breadth


class IVFFlat(FaissIndex):
    """Items in lists around k-means centroids; a search reads the lists whose centroids score best.

    InvertedLists are made by Euclidean distance and probed by inner product: the mean of a list then predicts the inner
    products of its items, and long vectors do not draw everything into few lists.

    Args:
        num_lists: None: about 2 sqrt(N), a power of two.
        seed: of the clustering.
    """

    # To look at an item in a list, relative to its inner product among the allowed items.
    _cost_per_item = 1.0

    def __init__(self, num_lists: int | None = None, seed: int = 0) -> None:
        super().__init__()
        _at_least("num_lists", num_lists, 1)
        self.num_lists = num_lists
        self.seed = seed

    @property
    def max_breadth(self) -> int:
        """All lists."""
        return 0 if self._ann is None else int(self._ann.nlist)

    def least_breadth(self, k: int) -> int:
        """Lists that hold some times `k` items; with fewer, answers come short, and are then made exactly."""
        return min(math.ceil(4 * k * self.max_breadth / self.num_items), self.max_breadth)

    def parameters(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {"num_lists": self.num_lists, "seed": self.seed}

    def _make(self, embeddings: Float32Array) -> Any:
        self.__dict__.pop("_lists", None)  # of an earlier build
        num_items, dim = embeddings.shape
        quantizer = faiss.IndexFlatL2(dim)
        num_lists = self._choose_num_lists(num_items)
        index = self._structure(quantizer, dim, num_lists)
        index.cp.seed = self.seed
        index.cp.spherical = False
        index.cp.niter = 10
        index.cp.max_points_per_centroid = TRAIN_POINTS
        index.cp.min_points_per_centroid = 1
        sample = embeddings
        if num_items > TRAIN_POINTS * num_lists:
            rows = np.random.default_rng(self.seed).choice(num_items, TRAIN_POINTS * num_lists, replace=False)
            sample = embeddings[np.sort(rows)]
        index.train(sample)
        index.add(embeddings)
        probe = faiss.IndexFlatIP(dim)
        probe.add(quantizer.reconstruct_n(0, num_lists))
        probe.this.disown()
        index.quantizer, index.own_fields = probe, True
        return index

    def _structure(self, quantizer: Any, dim: int, num_lists: int) -> Any:
        """The empty index."""
        return faiss.IndexIVFFlat(quantizer, dim, num_lists, faiss.METRIC_INNER_PRODUCT)

    def _choose_num_lists(self, num_items: int) -> int:
        if self.num_lists is None:
            return min(num_items, 1 << round(float(np.log2(2 * num_items**0.5))))
        if self.num_lists > num_items:
            log.warning("index: num_lists=%d, but there are only %d items; one list each", self.num_lists, num_items)
        return min(self.num_lists, num_items)

    def _search_parameters(self, breadth: int, selector: Any) -> Any:
        return faiss.SearchParametersIVF(nprobe=breadth, sel=selector)

    def _breadths(self, queries: Float32Array, wanted: int, allowed: AllowedRows) -> Rows:
        # The lists that it takes, by the model, over those that usual searches read: squared, because where the items
        # near a query do not pass, the model is too hopeful of what is left (recall .85 without).
        needed = self._lists.needed(queries, allowed, wanted)
        breadths = np.ceil(needed * (needed / self.effort.breadth).clip(1)).clip(max=self.max_breadth)
        widened: Rows = breadths.astype(np.int64)
        return widened

    @cached_property
    def _lists(self) -> InvertedLists:
        num_lists = self.max_breadth
        list_of_row: npt.NDArray[np.int32] = np.empty(self.num_items, np.int32)
        for number in range(num_lists):
            if size := self._ann.invlists.list_size(number):
                list_of_row[faiss.rev_swig_ptr(self._ann.invlists.get_ids(number), size)] = number
        centroids = faiss.downcast_index(self._ann.quantizer).reconstruct_n(0, num_lists)
        return InvertedLists(centroids, list_of_row, self._embeddings)

    def _cost(self, breadth: int) -> float:
        return self.max_breadth + self._cost_per_item * self.num_items * breadth / self.max_breadth


class IVFSQ8(IVFFlat):
    """`IVFFlat` with 8 bits a dimension: a quarter of the memory traffic. Candidates are scored again exactly."""

    refine_factors = (1, 2)

    def _structure(self, quantizer: Any, dim: int, num_lists: int) -> Any:
        kind = faiss.ScalarQuantizer.QT_8bit
        return faiss.IndexIVFScalarQuantizer(quantizer, dim, num_lists, kind, faiss.METRIC_INNER_PRODUCT)


class IVFPQFastScan(IVFFlat):
    """Lists of 4-bit product codes, compared in registers. Candidates are scored again exactly.

    Args:
        num_lists: None: about 2 sqrt(N), a power of two.
        num_codes: codes of an item, which must divide its dimension; None: one for each dimension.
        seed: of the clusterings.
    """

    refine_factors = (1, 2, 4, 8, 16)
    _cost_per_item = 0.25

    def __init__(self, num_lists: int | None = None, num_codes: int | None = None, seed: int = 0) -> None:
        super().__init__(num_lists, seed)
        _at_least("num_codes", num_codes, 1)
        self.num_codes = num_codes

    def parameters(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {"num_lists": self.num_lists, "num_codes": self.num_codes, "seed": self.seed}

    def _make(self, embeddings: Float32Array) -> Any:
        if len(embeddings) < MIN_PQ_ITEMS:
            log.warning("index: %d items are too few for product codes; searching exactly", len(embeddings))
            return None
        return super()._make(embeddings)

    def _structure(self, quantizer: Any, dim: int, num_lists: int) -> Any:
        num_codes = self._choose_num_codes(dim)
        index = faiss.IndexIVFPQFastScan(quantizer, dim, num_lists, num_codes, 4, faiss.METRIC_INNER_PRODUCT)
        # Codes of what the centroid leaves: recall of the codes alone .93 instead of .88 on clustered items.
        index.by_residual = True
        index.pq.cp.seed = self.seed
        index.pq.cp.min_points_per_centroid = 1
        return index

    def _choose_num_codes(self, dim: int) -> int:
        if self.num_codes is None:
            return dim
        fitting = max(codes for codes in range(1, min(self.num_codes, dim) + 1) if dim % codes == 0)
        if fitting != self.num_codes:
            log.warning("index: num_codes=%d does not divide dimension %d; using %d", self.num_codes, dim, fitting)
        return fitting


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UserError(f"index.{name}: found {value}, expected at least {least}")
