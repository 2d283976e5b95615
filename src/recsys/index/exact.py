"""Exact search by blocked matrix products: the reference for every other index, and the fastest for small corpora."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys.core.columns import Ragged
from recsys.core.types import Float32Array
from recsys.index.allowed import AllowedRows, to_allowed_rows
from recsys.index.ann_index import Effort, check_embeddings, check_search
from recsys.index.topk import Mask, Rows, exact_search


class Embeddings:
    """The embeddings of an index, and exact search among them; the base of all indexes of this package."""

    def __init__(self) -> None:
        self.effort = Effort(0)
        self._embeddings: Float32Array = np.empty((0, 0), np.float32)

    def parameters(self) -> dict[str, Any]:
        """Return the arguments of the constructor, which has an attribute for each."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @property
    def num_items(self) -> int:
        """Number of items, N."""
        return len(self._embeddings)

    @property
    def dim(self) -> int:
        """Width of the embeddings, D."""
        return int(self._embeddings.shape[1])

    def _exact(
        self, queries: Float32Array, k: int, *, allowed: AllowedRows | None, exclude: Ragged | None
    ) -> tuple[Float32Array, Rows]:
        rows = None if allowed is None else allowed.rows
        return exact_search(self._embeddings, queries, k=k, rows=rows, exclude=exclude)


class Exact(Embeddings):
    """Inner products with every allowed item. Only the embeddings are stored."""

    is_exact = True
    max_breadth = 0
    refine_factors: tuple[int, ...] = ()

    def least_breadth(self, k: int) -> int:  # noqa: ARG002
        """Return 0: exact search has no effort to choose."""
        return 0

    def build(self, embeddings: Float32Array) -> None:
        """Keep `embeddings` [N, D]."""
        check_embeddings(embeddings)
        self._embeddings = embeddings

    def search(
        self, queries: Float32Array, k: int, *, allow: Mask | AllowedRows | None = None, exclude: Ragged | None = None
    ) -> tuple[Float32Array, Rows]:
        """Return scores and rows of the k best allowed items; see `Index.search`."""
        queries = check_search(self, queries, k=k, allow=allow, exclude=exclude)
        return self._exact(queries, k, allowed=to_allowed_rows(allow), exclude=exclude)

    def save(self, folder: Path) -> list[str]:  # noqa: ARG002
        """Write no files."""
        return []

    def load(self, folder: Path, embeddings: Float32Array, *, names: Sequence[str]) -> None:  # noqa: ARG002
        """Keep the embeddings; there are no files to read."""
        self._embeddings = embeddings
