"""Exact search by blocked matrix products: the reference for every other index, and the best one for small corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recsys.core.columns import Ragged
from recsys.core.types import Float32Array
from recsys.index.allowed import AllowedRows, to_allowed_rows
from recsys.index.ann_index import Effort, check_embeddings, check_search
from recsys.index.files import save_index
from recsys.index.topk import Mask, Rows, exact_search


class Exact:
    """Inner products with every allowed item; keeps nothing but the embeddings."""

    is_exact = True
    max_breadth = 0
    refine_factors: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.effort = Effort(0)
        self._embeddings: Float32Array = np.empty((0, 0), np.float32)

    @property
    def num_items(self) -> int:
        """N."""
        return len(self._embeddings)

    @property
    def dim(self) -> int:
        """D."""
        return int(self._embeddings.shape[1])

    def least_breadth(self, k: int) -> int:  # noqa: ARG002
        """0: there is no effort to choose."""
        return 0

    def build(self, embeddings: Float32Array) -> None:
        """Keep `embeddings` [N, D]."""
        check_embeddings(embeddings)
        self._embeddings = embeddings

    def search(
        self, queries: Float32Array, k: int, allow: Mask | AllowedRows | None = None, exclude: Ragged | None = None
    ) -> tuple[Float32Array, Rows]:
        """(scores, rows) of the k best allowed items; see `Index.search`."""
        queries = check_search(self.num_items, self.dim, queries, k, allow, exclude)
        allowed = to_allowed_rows(allow)
        return exact_search(self._embeddings, queries, k, None if allowed is None else allowed.rows, exclude)

    def save(self, folder: Path) -> list[str]:
        """Write `item_index.json`; there is nothing else to keep."""
        return save_index(self, folder, None)

    def restore(self, embeddings: Float32Array, ann: Any) -> None:
        """Take the parts that `load_index` read."""
        assert ann is None
        self._embeddings = embeddings

    def parameters(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {}
