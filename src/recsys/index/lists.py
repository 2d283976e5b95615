"""Prediction of the number of lists of an inverted file that a filtered search must read, for each query.

The items that pass a filter may be spread evenly, near the query, or far from it, so their share does not determine how
many lists to read. The model assumes that the scores of a list's items follow a normal distribution around the score of
its centroid, with one variance for all lists (that of the residuals along the query). From the number of allowed items
in each list it derives the score that the wanted number of items exceeds, and how many of them each list holds.

Shapes: Q queries, L lists, N items, D dim.
"""

from __future__ import annotations

import weakref

import numpy as np
import numpy.typing as npt

from recsys.core.types import Float32Array
from recsys.index.allowed import AllowedRows
from recsys.index.topk import Rows

# Share of the wanted items that the chosen lists must hold according to the model.
COVERED = 0.98
# The variance is estimated from blocks of contiguous rows, because each page of mapped embeddings that is read stays in
# memory.
BLOCKS, BLOCK = 64, 256
# Bisection steps: the score is then known to a thousandth of the range of scores.
HALVINGS = 10


class InvertedLists:
    """Lists of an inverted file index: centroids [L, D], and the number of the list that holds each item, int32 [N]."""

    def __init__(
        self, centroids: Float32Array, list_of_row: npt.NDArray[np.int32], *, embeddings: Float32Array
    ) -> None:
        self._centroids, self._list_of_row = centroids, list_of_row
        starts = np.linspace(0, max(0, len(embeddings) - BLOCK), BLOCKS).astype(np.int64)
        rows = np.unique(starts[:, None] + np.arange(min(BLOCK, len(embeddings))))
        residuals = embeddings[rows] - centroids[list_of_row[rows]]
        self._covariance = residuals.T @ residuals / len(rows)
        self._counts: weakref.WeakKeyDictionary[AllowedRows, Float32Array] = weakref.WeakKeyDictionary()

    def needed(self, queries: Float32Array, allowed: AllowedRows, *, wanted: int) -> Rows:
        """Return the number of lists, best centroids first, that hold most of the `wanted` allowed items; int64 [Q]."""
        counts = self._count(allowed)
        scores = queries @ self._centroids.T
        spread = np.sqrt(np.einsum("qd,qd->q", queries @ self._covariance, queries).clip(1e-20))[:, None]
        low, high = scores.min(axis=1, keepdims=True) - 4 * spread, scores.max(axis=1, keepdims=True) + 6 * spread
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            enough = (counts * _above((middle - scores) / spread)).sum(axis=1, keepdims=True) > wanted
            low, high = np.where(enough, middle, low), np.where(enough, high, middle)
        held = counts * _above((low - scores) / spread)
        held = np.cumsum(np.take_along_axis(held, np.argsort(-scores, axis=1), axis=1), axis=1)
        needed: Rows = (held < COVERED * held[:, -1:]).sum(axis=1, dtype=np.int64) + 1
        return needed

    def _count(self, allowed: AllowedRows) -> Float32Array:
        """Return the number of allowed items in each list, float32 [L]. It is cached for each `AllowedRows`."""
        counts = self._counts.get(allowed)
        if counts is None:
            counts = np.bincount(self._list_of_row[allowed.mask], minlength=len(self._centroids)).astype(np.float32)
            self._counts[allowed] = counts
        return counts


def _above(z: Float32Array) -> Float32Array:
    """Return the share of a standard normal distribution above z, to 2e-4 (Page 1977).

    One exponential is cheaper than erf.
    """
    cubic = np.clip(z, -8, 8)
    grown = np.exp(cubic * (np.float32(1.5976) + np.float32(0.07056) * cubic * cubic)).astype(np.float32)
    above: Float32Array = np.reciprocal(np.float32(1) + grown)
    return above
