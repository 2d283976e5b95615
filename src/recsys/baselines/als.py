"""Matrix factorisation by alternating least squares (Hu, Koren and Volinsky 2008), through the package `implicit`."""

from __future__ import annotations

from typing import Any

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from recsys.baselines.interactions import Interactions
from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.data.batches.batch import Batch
from recsys.data.dataset import Requests


class ALS:
    """Scores items by inner products of factors. A user's factors are solved from the history at request time.

    Users without a known item get the most popular items.

    Args:
        factors: width of the factors.
        alpha: confidence in an observed event, on top of the confidence of 1 in an absent one.
        l2: regularisation.
        iterations: number of alternations.
        seed: seed of the initial factors.
    """

    def __init__(
        self, factors: int = 128, alpha: float = 20.0, *, l2: float = 0.01, iterations: int = 15, seed: int = 0
    ) -> None:
        for name, value in (("factors", factors), ("alpha", alpha), ("iterations", iterations)):
            if value <= 0:
                raise UserError(f"generator.{name}={value}: expected a positive number")
        if l2 < 0:
            raise UserError(f"generator.l2={l2}: expected 0 or more")
        self.factors, self.alpha, self.l2, self.iterations, self.seed = factors, alpha, l2, iterations, seed

    def fit(self, events: Interactions) -> None:
        """Alternate between solving for users and for items."""
        self._events, self._fallback = events, events.fallback()
        # The solver runs one thread per core, and each calls BLAS. BLAS threads on top of those would slow it down.
        with threadpool_limits(1, "blas"):
            self._model = AlternatingLeastSquares(
                factors=self.factors,
                regularization=self.l2,
                alpha=self.alpha,
                iterations=self.iterations,
                random_state=self.seed,
            )
            self._model.fit(events.users, show_progress=False)

    @property
    def item_factors(self) -> Float32Array:
        """Factors of the items, float32 [N, factors]; available after `fit`."""
        return np.asarray(self._model.item_factors, np.float32)

    def rank(self, batch: Batch, requests: Requests, *, k: int, exclude: Ragged | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Rank items for each request; see `recsys.evaluation.ranking.Ranker`."""
        return self._events.rank(requests, k, exclude, self._score)

    def _score(self, histories: Any, out: Float32Array) -> None:
        with threadpool_limits(1, "blas"):
            users = self._model.recalculate_user(np.arange(len(out)), histories)
        np.matmul(users, self._model.item_factors.T, out=out)
        out[np.diff(histories.indptr) == 0] = self._fallback
