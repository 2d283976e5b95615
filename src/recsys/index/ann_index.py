"""What every index offers, and the checks that all of them share.

Q queries, N items, D dim, K results. Rows are positions 0..N-1 in the embeddings that the index was built from; the
release maps them to item ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.index.allowed import AllowedRows
from recsys.index.topk import Mask, Rows


class Effort(NamedTuple):
    """How hard an approximate search tries.

    Attributes:
        breadth: lists probed (nprobe) or candidates kept (efSearch).
        refine: candidates per result that are scored again with the exact embeddings.
        k: number of results that the effort was measured for; longer answers widen it.
    """

    breadth: int
    refine: int = 1
    k: int = 100


class Index(Protocol):
    """An index of maximum inner product. Cosine similarity is inner product of vectors that the caller normalised.

    Attributes:
        effort: of an approximate search; `tune` sets it. An exact index ignores it.
        refine_factors: values of `effort.refine` that are worth measuring; empty for an exact index.
    """

    effort: Effort
    refine_factors: tuple[int, ...]

    @property
    def is_exact(self) -> bool:
        """Whether a search returns the true top-k."""
        ...

    @property
    def num_items(self) -> int:
        """N."""
        ...

    @property
    def dim(self) -> int:
        """D."""
        ...

    @property
    def max_breadth(self) -> int:
        """Full effort; 0 for an exact index."""
        ...

    def least_breadth(self, k: int) -> int:
        """The least effort that means anything for `k` results; 0 for an exact index."""
        ...

    def build(self, embeddings: Float32Array) -> None:
        """Index `embeddings` [N, D]. The array is kept (not copied) for exact search and exact scores.

        Raises:
            UserError: no items, not a matrix of float32, or values that are not finite.
        """
        ...

    def search(
        self, queries: Float32Array, k: int, allow: Mask | AllowedRows | None = None, exclude: Ragged | None = None
    ) -> tuple[Float32Array, Rows]:
        """Items of highest inner product.

        Args:
            queries: float32 [Q, D].
            k: results for each query; may exceed N.
            allow: the rows that may be returned to any query, as a mask bool [N] or, best where several searches share
                them, as `AllowedRows`; None: all.
            exclude: row q holds the rows that query q may not get, such as items it has seen.

        Returns:
            scores float32 [Q, k], exact inner products, and rows int64 [Q, k], best first. What is missing, only where
            fewer than k items are left to return, is score -inf and row -1.

        Raises:
            UserError: the shapes do not fit the index, or a query is not finite.
        """
        ...

    def save(self, folder: Path) -> list[str]:
        """Write `item_index.*` into `folder`; the names of the files. Embeddings are saved by the caller."""
        ...

    def parameters(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        ...


def check_embeddings(embeddings: npt.NDArray[Any]) -> None:
    """Refuse what no index can hold."""
    if embeddings.ndim != 2 or embeddings.dtype != np.float32:
        found = f"{embeddings.dtype} {list(embeddings.shape)}"
        raise UserError(f"item embeddings: found {found}, expected float32 [num_items, dim]")
    if not embeddings.size:
        raise UserError(f"item embeddings: found shape {list(embeddings.shape)}, expected at least one item")
    for begin in range(0, len(embeddings), 65536):
        finite = np.isfinite(embeddings[begin : begin + 65536]).all(axis=1)
        if not finite.all():
            row = begin + int(np.flatnonzero(~finite)[0])
            raise UserError(f"item embeddings: row {row} holds nan or inf, expected finite numbers")


def check_search(
    num_items: int, dim: int, queries: Float32Array, k: int, allow: Mask | AllowedRows | None, exclude: Ragged | None
) -> Float32Array:
    """Refuse a search that does not fit the index; the queries as contiguous float32."""
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise UserError(f"queries: found shape {list(queries.shape)}, expected [num_queries, {dim}]")
    if k < 1:
        raise UserError(f"k: found {k}, expected at least 1")
    queries = np.ascontiguousarray(queries, np.float32)
    if not np.isfinite(queries).all():
        row = int(np.flatnonzero(~np.isfinite(queries).all(axis=1))[0])
        raise UserError(f"queries: row {row} holds nan or inf, expected finite numbers")
    if isinstance(allow, AllowedRows) and allow.num_items != num_items:
        raise UserError(f"allow: found rows of {allow.num_items} items, expected {num_items}")
    if isinstance(allow, np.ndarray) and (allow.shape != (num_items,) or allow.dtype != np.bool_):
        raise UserError(f"allow: found {allow.dtype} {list(allow.shape)}, expected bool [{num_items}]")
    if exclude is not None:
        if len(exclude) != len(queries):
            raise UserError(f"exclude: found {len(exclude)} rows, expected one for each of {len(queries)} queries")
        if len(exclude.values) and not 0 <= exclude.values.min() <= exclude.values.max() < num_items:
            raise UserError(f"exclude: found rows outside 0..{num_items - 1}, the rows of the index")
    return queries
