"""The graph index and the exhaustive index of faiss. `tune` measures the search effort."""

from __future__ import annotations

from typing import Any

import faiss

from recsys.core.types import Float32Array
from recsys.index.approximate import FaissIndex, check_at_least


class FaissFlat(FaissIndex):
    """Exhaustive search by faiss, the reference for throughput.

    Results are exact, except that of several equal scores at the end any may be returned.
    """

    structure = "IndexFlatIP"
    is_exact = True
    max_breadth = 0
    refine_factors: tuple[int, ...] = ()

    def least_breadth(self, k: int) -> int:  # noqa: ARG002
        """Return 0: exhaustive search has no effort to choose."""
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
    """A navigable graph (Malkov and Yashunin 2016, arXiv 1603.09320): fastest for single queries, slow to build.

    Args:
        m: links of a node (twice as many at the bottom level).
        ef_construction: candidates examined to link one item.
        build_threads: threads of the build. With 1 the graph is the same each time; more are faster, but then the graph
            depends on their timing.
    """

    structure = "IndexHNSWFlat"

    def __init__(self, m: int = 32, ef_construction: int = 100, *, build_threads: int = 1) -> None:
        super().__init__()
        check_at_least("m", m, least=2)
        check_at_least("ef_construction", ef_construction, least=1)
        check_at_least("build_threads", build_threads, least=1)
        self.m = m
        self.ef_construction = ef_construction
        self.build_threads = build_threads

    @property
    def max_breadth(self) -> int:
        """Highest number of candidates kept: N, or 16,384, above which exact search is faster."""
        return min(self.num_items, 16384)

    def least_breadth(self, k: int) -> int:
        """Return k, because faiss keeps at least as many candidates as results."""
        return min(k, self.max_breadth)

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
        # Each candidate has about m new neighbours, and each of these is a jump in memory that costs several products.
        return 3.0 * self.m * breadth
