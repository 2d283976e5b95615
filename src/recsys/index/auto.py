"""The default index: exact search for small corpora, an approximate index for large ones."""

from __future__ import annotations

from typing import Any

from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.index.ann_index import Effort, Followable, Index
from recsys.index.exact import Exact


class Auto:
    """An index that `build` chooses by the number of items. `save_index` stores the chosen index instead.

    It has the attributes and methods of the chosen index.

    Args:
        approximate: index for corpora of `exact_below` items or more.
        exact_below: number of items below which a matrix product is faster than a search of any structure.
    """

    def __init__(self, approximate: Index, exact_below: int = 20_000) -> None:
        self.approximate, self.exact_below = approximate, exact_below

    def follow(self, earlier: Index | None) -> None:
        """Let the approximate index take what it can from an earlier one; see `IVFFlat.follow`."""
        if isinstance(self.approximate, Followable):
            self.approximate.follow(earlier)

    def build(self, embeddings: Float32Array) -> None:
        """Choose an index and build it."""
        chosen = Exact() if len(embeddings) < self.exact_below else self.approximate
        chosen.build(embeddings)
        self.__dict__["chosen"] = chosen

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if "chosen" not in self.__dict__:
            raise UserError("index: search or save before build")
        return getattr(self.chosen, name)

    @property
    def effort(self) -> Effort:
        """Effort of the chosen index."""
        return self.chosen.effort  # type: ignore[no-any-return]

    @effort.setter
    def effort(self, effort: Effort) -> None:
        self.chosen.effort = effort
