"""Item-kNN: items whose users also engaged with items of the history."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import vstack as stack_rows
from torch import Tensor

from recsys.baselines.interactions import Interactions, best_of_rows, dense_if_full, sum_rows
from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.data.batches.batch import Batch
from recsys.data.dataset import Requests


class ItemKNN:
    """Scores an item by the sum of its similarities to the items of the history.

    The similarity of two items is the shrunk cosine `common users / (sqrt(users * users) + shrink)`. Every item keeps
    its nearest neighbours. Items without a neighbour in the history follow after all others, most popular first.

    Args:
        num_neighbours: number of neighbours that an item keeps.
        shrink: damping of the similarities of rare items, in users.
    """

    def __init__(self, num_neighbours: int = 100, shrink: float = 0.0) -> None:
        if num_neighbours < 1:
            raise UserError(f"generator.num_neighbours={num_neighbours}: expected at least 1")
        if shrink < 0:
            raise UserError(f"generator.shrink={shrink}: expected 0 or more")
        self.num_neighbours, self.shrink = num_neighbours, shrink

    def fit(self, events: Interactions) -> None:
        """Find the neighbours of every item, in blocks of items."""
        self._events, users = events, events.users
        items = users.T.tocsr()
        norms = np.sqrt(np.diff(items.indptr)).astype(np.float32)
        pieces = []
        for block in events.blocks(items):
            similar = (items[block] @ users).tocsr()
            rows = np.repeat(np.arange(block.start, block.stop), np.diff(similar.indptr))
            similar.data /= norms[rows] * norms[similar.indices] + np.float32(self.shrink)
            similar.data[similar.indices == rows] = 0
            pieces.append(best_of_rows(similar, self.num_neighbours))
        # Row i holds the items that have item i among their neighbours, so a history selects rows.
        self._similarity = dense_if_full(stack_rows(pieces).T.tocsr())
        self._fallback = events.fallback()

    def rank(self, batch: Batch, requests: Requests, *, k: int, exclude: Ragged | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Rank items for each request; see `recsys.evaluation.ranking.Ranker`."""
        return self._events.rank(requests, k, exclude, self._score)

    def _score(self, histories: Any, out: Float32Array) -> None:
        sum_rows(histories, self._similarity, fallback=self._fallback, out=out)
