"""Which rows a search may return, and what searches derive from that: made once, used by every search of a filter."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from recsys.index.topk import Mask, Rows

# Rows are kept for so few; for more, a search costs far more than finding them again, and the memory adds up.
KEPT_ROWS = 65536


class AllowedRows:
    """Rows of an index that may be returned, one bit each.

    Args:
        mask: bool [N].
    """

    def __init__(self, mask: Mask) -> None:
        self.num_items = len(mask)
        # What faiss reads, while it searches: keep this object for as long.
        self.bitmap: npt.NDArray[np.uint8] = np.packbits(mask, bitorder="little")
        self.num_allowed = int(np.count_nonzero(mask))

    @property
    def mask(self) -> Mask:
        """Bool [N]."""
        return np.unpackbits(self.bitmap, count=self.num_items, bitorder="little").view(np.bool_)

    @property
    def rows(self) -> Rows:
        """The allowed rows, ascending."""
        return self._few if self.num_allowed <= KEPT_ROWS else np.flatnonzero(self.mask)

    @cached_property
    def _few(self) -> Rows:
        return np.flatnonzero(self.mask)


def to_allowed_rows(allow: Mask | AllowedRows | None) -> AllowedRows | None:
    """The same, as `AllowedRows`."""
    return AllowedRows(allow) if isinstance(allow, np.ndarray) else allow
