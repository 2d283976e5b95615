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
    k: int,
    allow: Mask | AllowedRows | None = None,
    exclude: Ragged | None = None,
) -> tuple[Float32Array, Rows]:
    """The k items of each user.

    Args:
        index: of the items.
        users: float32 [B, D], or [B, M, D] where a user has up to M embeddings (absent ones are zeros).
        k: results for each user.
        allow: the rows that may be returned; None: all.
        exclude: row b holds the rows that user b may not get.

    Returns:
        scores float32 [B, k] and rows int64 [B, k]. Of one embedding best first, as `Index.search`; of several in the
        order of `take_turns`, each score from the embedding that brought the item.
    """
    if users.ndim == 2:
        return index.search(users, k, allow, exclude)
    there = present_embeddings(users)
    owner = np.nonzero(there)[0]
    scores = np.full((*there.shape, k), -np.inf, np.float32)
    rows = np.full((*there.shape, k), -1, np.int64)
    excluded = None if exclude is None else exclude.take(owner)
    scores[there], rows[there] = index.search(users[there], k, allow, excluded)
    return take_turns(scores, rows, k)
