"""The default index: exact search for small corpora, an approximate index for large ones."""

from __future__ import annotations

from collections.abc import Sequence
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
    """An index that `build` chooses by the number of items. `save_index` stores the chosen index instead.

    Args:
        approximate: index for corpora of `exact_below` items or more.
        exact_below: number of items below which a matrix product is faster than a search of any structure.
    """

    def __init__(self, approximate: Index, exact_below: int = 20_000) -> None:
        self.approximate = approximate
        self.exact_below = exact_below
        self._chosen: Index | None = None

    @property
    def chosen(self) -> Index:
        """Index that `build` chose."""
        if self._chosen is None:
            raise UserError("index: search or save before build")
        return self._chosen

    @property
    def effort(self) -> Effort:
        """Effort of the chosen index."""
        return self.chosen.effort

    @effort.setter
    def effort(self, effort: Effort) -> None:
        self.chosen.effort = effort

    @property
    def refine_factors(self) -> tuple[int, ...]:
        """Refine factors of the chosen index."""
        return self.chosen.refine_factors

    @property
    def is_exact(self) -> bool:
        """True if the chosen index is exact."""
        return self.chosen.is_exact

    @property
    def num_items(self) -> int:
        """Number of items, N."""
        return self.chosen.num_items

    @property
    def dim(self) -> int:
        """Width of the embeddings, D."""
        return self.chosen.dim

    @property
    def max_breadth(self) -> int:
        """Highest useful breadth of the chosen index."""
        return self.chosen.max_breadth

    def least_breadth(self, k: int) -> int:
        """Return the lowest useful breadth of the chosen index."""
        return self.chosen.least_breadth(k)

    def build(self, embeddings: Float32Array) -> None:
        """Choose an index and build it."""
        self._chosen = Exact() if len(embeddings) < self.exact_below else self.approximate
        self._chosen.build(embeddings)

    def search(
        self, queries: Float32Array, k: int, *, allow: Mask | AllowedRows | None = None, exclude: Ragged | None = None
    ) -> tuple[Float32Array, Rows]:
        """Search the chosen index; see `Index.search`."""
        return self.chosen.search(queries, k, allow=allow, exclude=exclude)

    def save(self, folder: Path) -> list[str]:
        """Write the files of the chosen index."""
        return self.chosen.save(folder)

    def load(self, folder: Path, embeddings: Float32Array, *, names: Sequence[str]) -> None:
        """Read the files of the chosen index."""
        self.chosen.load(folder, embeddings, names=names)

    def parameters(self) -> dict[str, Any]:
        """Return the constructor arguments of the chosen index."""
        return self.chosen.parameters()
