"""The part of a corpus that one host searches. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.core.errors import UserError

_SHARD = re.compile(r"(\d{1,4})/(\d{1,4})")


@dataclass(frozen=True)
class CorpusShard:
    """Part `number` of `count`: the rows with row % count == number.

    Neighbouring rows are in different parts, so all parts have about the same work for any order of the items.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise UserError(f"shard: found {self}, expected I/N with I below N, such as 0/2 and 1/2 for two shards")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> CorpusShard:
        """Return the shard `I/N`, counted from 0; raise `UserError` if the text has another form."""
        found = _SHARD.fullmatch(text)
        if found is None:
            raise UserError(f"shard: found {text!r}, expected I/N, such as 0/2 and 1/2 for two shards")
        return cls(int(found[1]), int(found[2]))

    def rows(self, num_items: int) -> npt.NDArray[np.bool_]:
        """Return the rows of the index that belong to this part, as bool [N]."""
        rows: npt.NDArray[np.bool_] = np.arange(num_items) % self.count == self.number
        return rows
