"""The default: exact search for small corpora, an approximate index for large ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.index.allowed import AllowedRows
from recsys.index.ann_index import Effort, Index
from recsys.index.exact import Exact
from recsys.index.topk import Mask, Rows


class Auto:
    """Chooses at `build`, by the number of items. What is saved, and loaded again, is the chosen index.

    Args:
        approximate: used from `exact_below` items on.
        exact_below: up to so many items a matrix product answers faster than a search of any structure.
    """

    def __init__(self, approximate: Index, exact_below: int = 20_000) -> None:
        self.approximate = approximate
        self.exact_below = exact_below
        self._chosen: Index | None = None

    @property
    def chosen(self) -> Index:
        """The index that `build` chose."""
        if self._chosen is None:
            raise UserError("index: search or save before build")
        return self._chosen

    @property
    def effort(self) -> Effort:
        """Of the chosen index."""
        return self.chosen.effort

    @effort.setter
    def effort(self, effort: Effort) -> None:
        self.chosen.effort = effort

    @property
    def refine_factors(self) -> tuple[int, ...]:
        """Of the chosen index."""
        return self.chosen.refine_factors

    @property
    def is_exact(self) -> bool:
        """Whether the chosen index is exact."""
        return self.chosen.is_exact

    @property
    def num_items(self) -> int:
        """N."""
        return self.chosen.num_items

    @property
    def dim(self) -> int:
        """D."""
        return self.chosen.dim

    @property
    def max_breadth(self) -> int:
        """Of the chosen index."""
        return self.chosen.max_breadth

    def least_breadth(self, k: int) -> int:
        """Of the chosen index."""
        return self.chosen.least_breadth(k)

    def build(self, embeddings: Float32Array) -> None:
        """Choose, and build the chosen index."""
        self._chosen = Exact() if len(embeddings) < self.exact_below else self.approximate
        self._chosen.build(embeddings)

    def search(
        self, queries: Float32Array, k: int, allow: Mask | AllowedRows | None = None, exclude: Ragged | None = None
    ) -> tuple[Float32Array, Rows]:
        """(scores, rows) of the k best allowed items; see `Index.search`."""
        return self.chosen.search(queries, k, allow, exclude)

    def save(self, folder: Path) -> list[str]:
        """Write the chosen index."""
        return self.chosen.save(folder)

    def parameters(self) -> dict[str, Any]:
        """Arguments of the chosen index's constructor."""
        return self.chosen.parameters()
