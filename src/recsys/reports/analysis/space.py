"""The space of item embeddings: nearest neighbours, principal axes, and agreement with categories.

Shapes: N items of the corpus, D dim.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.experiments.trained_run import TrainedRun
from recsys.models.blend import item_vectors


class ItemSpace:
    """Directions of the item embeddings of a run.

    The popularity term that retrieval adds to each item (`model.prior_shift`) is not a direction and is left out.

    Args:
        run: finished run.

    Attributes:
        item_idx: items of the corpus, int64 [N].
        vectors: embeddings of unit length, float32 [N, D].
    """

    def __init__(self, run: TrainedRun) -> None:
        self.item_idx = run.corpus
        embeddings = item_vectors(run.model, torch.from_numpy(run.corpus)).cpu().numpy()
        self.vectors: Float32Array = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)

    def __contains__(self, item_idx: int) -> bool:
        """Return whether the item is in the corpus."""
        place = int(np.searchsorted(self.item_idx, item_idx))
        return place < len(self.item_idx) and int(self.item_idx[place]) == item_idx

    def neighbours(self, item_idx: int, k: int) -> tuple[Float32Array, npt.NDArray[np.int64]]:
        """Return the cosines [k] and item_idx [k] of the items nearest to an item, the item itself left out.

        Raises:
            UserError: If the item is not in the corpus.
        """
        place = int(np.searchsorted(self.item_idx, item_idx))
        if item_idx not in self:
            raise UserError(f"item {item_idx} is not in the corpus: it has neither a trained id nor a feature")
        cosines = self.vectors @ self.vectors[place]
        cosines[place] = -np.inf
        nearest = np.argsort(-cosines, kind="stable")[: min(k, len(cosines) - 1)]
        return cosines[nearest], self.item_idx[nearest]

    @cached_property
    def _axes(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        middle = self.vectors.mean(0, dtype=np.float64)
        spread = np.zeros((len(middle), len(middle)))
        for begin in range(0, len(self.vectors), 65_536):
            block = self.vectors[begin : begin + 65_536] - middle
            spread += block.T @ block
        values, directions = np.linalg.eigh(spread)
        directions = directions[:, ::-1]
        # The sign of an axis is arbitrary. The largest entry is made positive to get reproducible pictures.
        signs = np.sign(directions[np.abs(directions).argmax(0), np.arange(len(middle))])
        return middle, values[::-1].clip(0), directions * signs

    def plane(self) -> tuple[Float32Array, tuple[float, float]]:
        """Return coordinates on the two principal axes [N, 2], and the shares of variance that these explain."""
        middle, values, directions = self._axes
        total = max(float(values.sum()), 1e-12)
        points = ((self.vectors - middle) @ directions[:, :2]).astype(np.float32)
        return points, (float(values[0]) / total, float(values[1]) / total)

    def agreement(self, labels: npt.NDArray[np.object_], k: int = 10, *, num_items: int = 2000) -> tuple[float, float]:
        """Return how often one of the k nearest items shares an item's label, and how often a random item does.

        Args:
            labels: label of each item, None if it has none; object [N].
            k: number of neighbours.
            num_items: maximum number of labelled items to look at; more are sampled with a fixed seed.

        Raises:
            UserError: If fewer than two items have a label.
        """
        labelled = np.flatnonzero(labels != None)  # noqa: E711 - elementwise
        if len(labelled) < 2:
            raise UserError(f"{len(labelled)} items have a label, expected at least two")
        codes = np.unique(labels[labelled].astype(str), return_inverse=True)[1]
        asked = np.arange(len(labelled))
        if len(asked) > num_items:
            asked = np.sort(np.random.default_rng(0).choice(len(asked), num_items, replace=False))
        cosines = self.vectors[labelled[asked]] @ self.vectors[labelled].T
        cosines[np.arange(len(asked)), asked] = -np.inf
        k = min(k, len(labelled) - 1)
        nearest = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        same = codes[nearest] == codes[asked][:, None]
        counts = np.bincount(codes)
        chance = ((counts[codes[asked]] - 1) / (len(labelled) - 1)).mean()
        return float(same.mean()), float(chance)
