"""Matrix factorisation by alternating least squares (Hu, Koren, Volinsky 2008), as the package `implicit` does it."""

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
    """Scores are inner products of factors; a user's factors are solved from the history when a request comes.

    Users of whom no item is known get the most popular ones.

    Args:
        factors: width of the factors.
        alpha: confidence in an event, beside 1 for its absence.
        l2: regularisation.
        iterations: alternations.
        seed: of the first factors.
    """

    def __init__(
        self, factors: int = 128, alpha: float = 20.0, l2: float = 0.01, iterations: int = 15, seed: int = 0
    ) -> None:
        for name, value in (("factors", factors), ("alpha", alpha), ("iterations", iterations)):
            if value <= 0:
                raise UserError(f"generator.{name}={value}: expected a positive number")
        if l2 < 0:
            raise UserError(f"generator.l2={l2}: expected 0 or more")
        self.factors, self.alpha, self.l2, self.iterations, self.seed = factors, alpha, l2, iterations, seed

    def fit(self, events: Interactions) -> None:
        """Alternate between users and items."""
        self._events, self._fallback = events, events.fallback()
        # The solver runs one thread a core, each of which calls BLAS: with threads of its own that would crawl.
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
        """Factors of the items [N, factors], once fitted."""
        return np.asarray(self._model.item_factors, np.float32)

    def rank(self, batch: Batch, requests: Requests, k: int, exclude: Ragged | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """As in `recsys.evaluation.ranking.Ranker`."""
        return self._events.rank(requests, k, exclude, self._score)

    def _score(self, histories: Any, out: Float32Array) -> None:
        with threadpool_limits(1, "blas"):
            users = self._model.recalculate_user(np.arange(len(out)), histories)
        np.matmul(users, self._model.item_factors.T, out=out)
        out[np.diff(histories.indptr) == 0] = self._fallback
