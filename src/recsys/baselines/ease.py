"""EASE: a linear model that predicts every item from all others, in closed form (Steck 2019, arXiv 1905.03375)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import lapack
from torch import Tensor

from recsys.baselines.interactions import Interactions
from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.data.batches.batch import Batch
from recsys.data.dataset import Requests

# Number of matrix rows that are mirrored at once.
_ROWS = 512


class EASE:
    """Scores items by the sum of the weight rows of the history's items.

    With the item-item counts G and P = (G + l2 I)^-1, the weights are B_ij = -P_ij / P_jj off the diagonal and 0 on it.
    Users without a known item get the most popular items.

    Args:
        l2: regularisation; hundreds for dense data, tens for sparse data.
        max_gigabytes: upper bound on the memory of the two dense matrices, counts and weights (9.6 GB for 35 thousand
            items). Time grows with the cube of the number of items.
    """

    def __init__(self, l2: float = 200.0, max_gigabytes: float = 8.0) -> None:
        for name, value in (("l2", l2), ("max_gigabytes", max_gigabytes)):
            if value <= 0:
                raise UserError(f"generator.{name}={value}: expected a positive number")
        self.l2, self.max_gigabytes = l2, max_gigabytes

    def fit(self, events: Interactions) -> None:
        """Solve for the weights.

        Raises:
            UserError: If there are too many items for a dense inverse.
        """
        num_items = events.num_items
        needed = 2 * 4 * num_items**2 / 1e9
        if needed > self.max_gigabytes:
            raise UserError(
                f"generator=ease: {num_items} items need {needed:.3g} GB (two dense matrices of items x items), "
                f"expected at most generator.max_gigabytes={self.max_gigabytes:g}; use generator=als or "
                "generator=item_knn, or raise data.min_item_events"
            )
        weights = events.pairs.copy()
        weights[np.diag_indices(num_items)] += np.float32(self.l2)
        _invert(weights)
        weights /= -weights.diagonal()
        np.fill_diagonal(weights, 0)
        self._weights = torch.from_numpy(weights)
        self._events, self._fallback = events, events.fallback()

    def rank(self, batch: Batch, requests: Requests, *, k: int, exclude: Ragged | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Rank items for each request; see `recsys.evaluation.ranking.Ranker`."""
        return self._events.rank(requests, k, exclude, self._score)

    def _score(self, histories: Any, out: Float32Array) -> None:
        items = torch.from_numpy(histories.indices.astype(np.int64))
        offsets = torch.from_numpy(histories.indptr[:-1].astype(np.int64))
        out[:] = F.embedding_bag(items, self._weights, offsets, mode="sum").numpy()
        out[np.diff(histories.indptr) == 0] = self._fallback


def _invert(matrix: Float32Array) -> None:
    """Replace a positive definite matrix by its inverse.

    float32 is enough: the condition number is at most about (count of the most frequent pair) / l2.
    """
    # The transpose is the column-major view that LAPACK expects, so nothing is copied.
    _, failed = lapack.spotrf(matrix.T, lower=1, overwrite_a=1, clean=0)
    assert not failed
    _, failed = lapack.spotri(matrix.T, lower=1, overwrite_c=1)
    assert not failed
    # LAPACK fills only the lower triangle of the transpose, which is the upper triangle of the matrix.
    for begin in range(0, len(matrix), _ROWS):
        block = slice(begin, begin + _ROWS)
        rows = matrix[block]
        matrix[block.stop :, block] = rows[:, block.stop :].T
        square = rows[:, block]
        square[:] = np.triu(square) + np.triu(square, 1).T
