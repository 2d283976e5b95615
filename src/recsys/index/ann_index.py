"""The protocol of an index, and the checks that all indexes share.

Shapes: Q queries, N items, D dim, K results. Rows are positions 0..N-1 in the embeddings that the index was built from;
the release maps them to item ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.index.allowed import AllowedRows
from recsys.index.topk import Mask, Rows


class Effort(NamedTuple):
    """Settings of an approximate search that trade speed for recall.

    Attributes:
        breadth: lists probed (nprobe) or candidates kept (efSearch).
        refine: candidates per result that are scored again with the exact embeddings.
        k: number of results that the effort was measured for. A search for more results uses more effort.
    """

    breadth: int
    refine: int = 1
    k: int = 100


A_contra = TypeVar("A_contra", contravariant=True)


class Searchable(Protocol[A_contra]):
    """The part of an `Index` that answers requests; the type of `allow` is its own."""

    @property
    def num_items(self) -> int:
        """Number of items, N."""
        ...

    def search(
        self, queries: Float32Array, k: int, *, allow: A_contra | None = None, exclude: Ragged | None = None
    ) -> tuple[Float32Array, Rows]:
        """Return scores and rows of the k best allowed items; see `Index.search`."""
        ...


class Tunable(Protocol):
    """The part of an `Index` that `tune` measures."""

    effort: Effort

    @property
    def refine_factors(self) -> tuple[int, ...]:
        """Values of `effort.refine` to measure."""
        ...

    @property
    def is_exact(self) -> bool:
        """True if a search returns the true top-k."""
        ...

    @property
    def num_items(self) -> int:
        """Number of items, N."""
        ...

    @property
    def max_breadth(self) -> int:
        """Highest useful `effort.breadth`."""
        ...

    def least_breadth(self, k: int) -> int:
        """Return the lowest useful `effort.breadth` for `k` results."""
        ...

    def search(self, queries: Float32Array, k: int, /) -> tuple[Float32Array, Rows]:
        """Return scores and rows of the k best items."""
        ...


class Index(Protocol):
    """An index for maximum inner product search.

    Cosine similarity is the inner product of vectors that the caller has scaled to unit length. A class of another
    package can implement this protocol: `save_index` stores its import path, and `load_index` opens it by that path.

    Attributes:
        effort: effort of an approximate search, set by `tune`. An exact index ignores it.
        refine_factors: values of `effort.refine` that `tune` measures; empty for an exact index.
    """

    effort: Effort
    refine_factors: tuple[int, ...]

    @property
    def is_exact(self) -> bool:
        """True if a search returns the true top-k."""
        ...

    @property
    def num_items(self) -> int:
        """Number of items, N."""
        ...

    @property
    def dim(self) -> int:
        """Width of the embeddings, D."""
        ...

    @property
    def max_breadth(self) -> int:
        """Highest useful `effort.breadth`; 0 for an exact index."""
        ...

    def least_breadth(self, k: int) -> int:
        """Return the lowest useful `effort.breadth` for `k` results; 0 for an exact index."""
        ...

    def build(self, embeddings: Float32Array) -> None:
        """Index `embeddings` [N, D]. The array is kept, not copied, for exact search and exact scores.

        Raises:
            UserError: If there are no items, the array is not a matrix of float32, or a value is not finite.
        """
        ...

    def search(
        self, queries: Float32Array, k: int, *, allow: Mask | AllowedRows | None = None, exclude: Ragged | None = None
    ) -> tuple[Float32Array, Rows]:
        """Return the items of highest inner product.

        Args:
            queries: float32 [Q, D].
            k: results for each query; may exceed N.
            allow: rows that may be returned to any query, as a mask bool [N] or as `AllowedRows`, which several
                searches can share; None for all rows.
            exclude: Q lists of rows; query q gets none of list q, such as items it has seen.

        Returns:
            Scores float32 [Q, k], exact inner products, and rows int64 [Q, k], best first. If fewer than k items may be
            returned, the rest has score -inf and row -1.

        Raises:
            UserError: If the shapes do not fit the index, or a query is not finite.
        """
        ...

    def save(self, folder: Path) -> list[str]:
        """Write the files `item_index.*` that the index needs in addition to the embeddings, and return their names.

        Call `save_index`, which writes the description of the index too.
        """
        ...

    def load(self, folder: Path, embeddings: Float32Array, *, names: Sequence[str]) -> None:
        """Read what `save` wrote, into an object made from `parameters`.

        Args:
            folder: folder that `save` wrote to.
            embeddings: float32 [N, D], the array that the index was built from.
            names: names of the files that `save` wrote; their sizes and digests have been checked.
        """
        ...

    def parameters(self) -> dict[str, Any]:
        """Return the arguments of the constructor, as values that JSON can hold."""
        ...


@runtime_checkable
class Followable(Protocol):
    """An index that can be built faster after an earlier one of about the same embeddings."""

    def follow(self, earlier: Index | None) -> None:
        """Let `build` take from an earlier index what it would otherwise compute again; None for nothing."""
        ...


def check_embeddings(embeddings: npt.NDArray[Any]) -> None:
    """Raise a `UserError` unless the embeddings are a finite float32 matrix of at least one item."""
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
    index: Index, queries: Float32Array, *, k: int, allow: Mask | AllowedRows | None, exclude: Ragged | None
) -> Float32Array:
    """Return the queries as contiguous float32, or raise a `UserError` if the search does not fit the index."""
    num_items, dim = index.num_items, index.dim
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
