"""EASE: a linear model of every item from all others, in closed form (Steck 2019, arXiv 1905.03375)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import lapack
from torch import Tensor

from recsys.data.batch import Batch
from recsys.data.columns import Ragged
from recsys.data.dataset import PreparedDataset, Requests
from recsys.errors import UserError
from recsys.generators.interactions import Floats, Interactions, Until, blocks

# The inverse is dense: 3.6 GB at 30 thousand items, and its time grows with the cube.
MAX_ITEMS = 30_000


class EASE:
    """Scores of a history are the sum of its items' rows of the weights B.

    With the item-item counts G and P = (G + l2 I)^-1: B_ij = -P_ij / P_jj off the diagonal, 0 on it. Users of whom no
    item is known get the most popular ones.

    Args:
        l2: regularisation; hundreds for dense data, tens for sparse.
    """

    def __init__(self, l2: float = 200.0) -> None:
        if l2 <= 0:
            raise UserError(f"generator.l2={l2}: expected a positive number")
        self.l2 = l2

    def fit(self, dataset: PreparedDataset, until: Until) -> None:
        """Solve for the weights.

        Raises:
            UserError: too many items for a dense inverse.
        """
        self._events = Interactions(dataset, until)
        num_items = self._events.num_items
        if num_items > MAX_ITEMS:
            raise UserError(
                f"generator=ease: {num_items} items, expected at most {MAX_ITEMS} (its memory grows with the square); "
                "use generator=als or generator=item_knn, or raise data.min_item_events"
            )
        users = self._events.users()
        weights = np.zeros((num_items, num_items), np.float32)
        (users.T @ users).tocsr().todense(out=weights)
        weights[np.diag_indices(num_items)] += np.float32(self.l2)
        _invert(weights)
        weights /= -weights.diagonal()
        np.fill_diagonal(weights, 0)
        self._weights = torch.from_numpy(weights)
        self._fallback = self._events.fallback()

    def rank(self, batch: Batch, requests: Requests, k: int, exclude: Ragged | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """As in `recsys.evaluation.ranking.Ranker`."""
        return self._events.rank(requests, k, exclude, self._score)

    def _score(self, histories: Any, out: Floats) -> None:
        items = torch.from_numpy(histories.indices.astype(np.int64))
        offsets = torch.from_numpy(histories.indptr[:-1].astype(np.int64))
        out[:] = F.embedding_bag(items, self._weights, offsets, mode="sum").numpy()
        out[np.diff(histories.indptr) == 0] = self._fallback


def _invert(matrix: Floats) -> None:
    """The inverse of a positive definite matrix, in its place.

    In float32: the condition number is at most about (most frequent pair) / l2, far from its limits.
    """
    # The transpose is the column-major view that LAPACK wants, so that nothing is copied.
    _, failed = lapack.spotrf(matrix.T, lower=1, overwrite_a=1, clean=0)
    assert not failed
    _, failed = lapack.spotri(matrix.T, lower=1, overwrite_c=1)
    assert not failed
    # Only the lower triangle of the transpose is computed, which is the upper one of the matrix.
    for block in blocks(*matrix.shape):
        rows = matrix[block]
        matrix[block.stop :, block] = rows[:, block.stop :].T
        square = rows[:, block]
        square[:] = np.triu(square) + np.triu(square, 1).T
