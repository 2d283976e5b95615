"""Neighbours of items: what people who had the items of a history had as well."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse import vstack as stack_rows
from torch import Tensor

from recsys.data.batch import Batch
from recsys.data.columns import Ragged
from recsys.data.dataset import PreparedDataset, Requests
from recsys.errors import UserError
from recsys.generators.interactions import Floats, Interactions, Until, blocks


class ItemKNN:
    """Scores an item by the sum of its similarities to the items of the history.

    Similarity of two items is the shrunk cosine `common users / (sqrt(users * users) + shrink)`. Every item keeps its
    nearest neighbours. Items with no neighbour in the history follow after all others, most popular first.

    Args:
        num_neighbours: neighbours that an item keeps.
        shrink: users by which similarities of rare items are damped.
    """

    def __init__(self, num_neighbours: int = 100, shrink: float = 0.0) -> None:
        if num_neighbours < 1:
            raise UserError(f"generator.num_neighbours={num_neighbours}: expected at least 1")
        if shrink < 0:
            raise UserError(f"generator.shrink={shrink}: expected 0 or more")
        self.num_neighbours, self.shrink = num_neighbours, shrink

    def fit(self, dataset: PreparedDataset, until: Until) -> None:
        """Find the neighbours of every item, in blocks of items."""
        self._events = Interactions(dataset, until)
        users = self._events.users()
        items = users.T.tocsr()
        num_items = items.shape[0]
        norms = np.sqrt(np.diff(items.indptr)).astype(np.float32)
        pieces = []
        for block in blocks(num_items, num_items):
            similar = (items[block] @ users).tocsr()
            rows = np.repeat(np.arange(block.start, block.stop), np.diff(similar.indptr))
            similar.data /= norms[rows] * norms[similar.indices] + np.float32(self.shrink)
            similar.data[similar.indices == rows] = 0
            pieces.append(_best_of_rows(similar, self.num_neighbours))
        # Row i holds the items that have i among their neighbours: a history selects rows.
        self._similarity = stack_rows(pieces).T.tocsr()
        self._fallback = self._events.fallback()

    def rank(self, batch: Batch, requests: Requests, k: int, exclude: Ragged | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """As in `recsys.evaluation.ranking.Ranker`."""
        return self._events.rank(requests, k, exclude, self._score)

    def _score(self, histories: Any, out: Floats) -> None:
        found = histories @ self._similarity
        out[:] = self._fallback
        out[np.repeat(np.arange(len(out)), np.diff(found.indptr)), found.indices] = found.data


def _best_of_rows(matrix: Any, k: int) -> Any:
    """The k largest positive entries of each row of a csr matrix, lower columns first among equals."""
    num_rows, num_columns = matrix.shape
    rows = np.repeat(np.arange(num_rows), np.diff(matrix.indptr))
    positive = matrix.data > 0
    rows, columns, values = rows[positive], matrix.indices[positive], matrix.data[positive]
    # One sort of plain integers: row, then value downwards, then column. The bits of positive floats are in the order
    # of their values, and 30 bits hold those below 2. With very many columns the last bits of a value do not count.
    column_bits = int(num_columns).bit_length()
    value_bits = min(30, 63 - column_bits - int(num_rows).bit_length())
    descending = ((1 << 30) - 1 - values.view(np.int32).astype(np.int64)) >> (30 - value_bits)
    order = np.argsort((((rows << value_bits) | descending) << column_bits) | columns)
    first = np.searchsorted(rows, np.arange(num_rows))
    best = order[np.arange(len(rows)) - first[rows] < k]
    return csr_matrix((values[best], (rows[best], columns[best])), shape=matrix.shape)
