"""Search for users, who have one embedding or several."""

from __future__ import annotations

import numpy as np

from recsys.core.columns import Ragged
from recsys.core.types import Float32Array
from recsys.index.allowed import AllowedRows
from recsys.index.ann_index import Index
from recsys.index.extended import ExtendedIndex
from recsys.index.merging import present_embeddings, take_turns
from recsys.index.topk import Mask, Rows


def search_users(
    index: Index | ExtendedIndex,
    users: Float32Array,
    *,
    k: int,
    allow: Mask | AllowedRows | None = None,
    exclude: Ragged | None = None,
) -> tuple[Float32Array, Rows]:
    """Return the k best items of each user.

    Args:
        index: index of the items.
        users: float32 [B, D], or [B, M, D] if a user has up to M embeddings; absent embeddings are zeros.
        k: results for each user.
        allow: rows that may be returned; None for all.
        exclude: B lists of rows; user b gets none of list b.

    Returns:
        Scores float32 [B, k] and rows int64 [B, k]. With one embedding a user, best first, as in `Index.search`. With
        several, in the order of `take_turns`; each score comes from the embedding that found the item.
    """
    if users.ndim == 2:
        return index.search(users, k, allow=allow, exclude=exclude)
    present = present_embeddings(users)
    owner = np.nonzero(present)[0]
    scores = np.full((*present.shape, k), -np.inf, np.float32)
    rows = np.full((*present.shape, k), -1, np.int64)
    excluded = None if exclude is None else exclude.take(owner)
    scores[present], rows[present] = index.search(users[present], k, allow=allow, exclude=excluded)
    return take_turns(scores, rows, k=k)
