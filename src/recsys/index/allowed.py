"""Rows that a search may return. One object is made for a filter and shared by all searches with that filter."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from recsys.index.topk import Mask, Rows

# Up to this number the row numbers are cached. With more rows a search costs far more than finding them again, and the
# memory of many filters adds up.
KEPT_ROWS = 65536


class AllowedRows:
    """Rows of an index that may be returned, one bit each, made from a mask bool [N]."""

    def __init__(self, mask: Mask) -> None:
        self.num_items = len(mask)
        # faiss reads this memory during a search, so the object must live as long as the search.
        self.bitmap: npt.NDArray[np.uint8] = np.packbits(mask, bitorder="little")
        self.num_allowed = int(np.count_nonzero(mask))

    @property
    def mask(self) -> Mask:
        """Mask bool [N], true for the allowed rows."""
        return np.unpackbits(self.bitmap, count=self.num_items, bitorder="little").view(np.bool_)

    @property
    def rows(self) -> Rows:
        """Allowed rows, ascending."""
        return self._few if self.num_allowed <= KEPT_ROWS else np.flatnonzero(self.mask)

    @cached_property
    def _few(self) -> Rows:
        return np.flatnonzero(self.mask)


def to_allowed_rows(allow: Mask | AllowedRows | None) -> AllowedRows | None:
    """Return a mask or `AllowedRows` as `AllowedRows`, and None as None."""
    return AllowedRows(allow) if isinstance(allow, np.ndarray) else allow
