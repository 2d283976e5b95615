"""Recall monitor: compares a share of the searches with exact search.

The recall of a release is measured on validation users; later requests, and their filters, may differ from those. A
query of a sampled search is repeated in a background thread, with the index and exactly. Imports no torch.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.index import AllowedRows, Index, exact_search
from recsys.index.sharded import ShardIndex
from recsys.serving.observability.background import BackgroundThread
from recsys.serving.observability.metrics import Metrics

# Number of latest searches of each version in the mean.
WINDOW = 500


@dataclass(frozen=True, slots=True)
class SampledSearch:
    """One query [D] among the items' embeddings [N, D], with the allowed rows and the excluded ones (int32 [E])."""

    version: str
    index: Index
    embeddings: Float32Array
    query: Float32Array
    k: int
    allow: AllowedRows | None
    exclude: np.ndarray[tuple[int], np.dtype[np.int32]]


class RecallMonitor:
    """Running mean of the recall of indexes against exact search.

    Args:
        depth: maximum number of waiting searches; more are dropped.
    """

    def __init__(
        self, share: float, background: BackgroundThread, *, metrics: Metrics, depth: int = 16, seed: int | None = None
    ) -> None:
        if not 0 <= share <= 1:
            raise UserError(f"monitor: found {share}, expected a share of the searches from 0 to 1")
        self.share, self._metrics = share, metrics
        self._random = random.Random(seed)
        self._recalls: dict[str, deque[float]] = {}
        self._lock = threading.Lock()
        self._lane = background.lane("recall_monitor", self._measure, depth=depth)

    def wants(self) -> bool:
        """Return True if the next search must be repeated."""
        return self.share > 0 and self._random.random() < self.share

    def put(self, search: SampledSearch) -> None:
        """Queue a search to be repeated; returns at once."""
        if not self._lane.put(search):
            self._metrics.recall_missed.inc()

    def forget(self, version: str) -> None:
        """Stop showing a version that was unloaded."""
        with self._lock:
            if self._recalls.pop(version, None) is not None:
                self._metrics.set_recall(version, 0.0, samples=0)

    def _measure(self, searches: Sequence[SampledSearch]) -> None:
        for search in searches:
            try:
                recall = recall_of(search)
            except Exception:
                # The error stays visible after its log line is gone.
                self._metrics.recall_missed.inc()
                raise
            with self._lock:
                latest = self._recalls.setdefault(search.version, deque(maxlen=WINDOW))
                latest.append(recall)
                self._metrics.set_recall(search.version, sum(latest), samples=len(latest))


def recall_of(search: SampledSearch) -> float:
    """Return the share of the exact top-k that the index finds; 1 if there is nothing to find.

    An item with the score of the exact k-th item counts as found, because items of equal score are interchangeable.
    """
    exclude = Ragged(search.exclude, np.array([0, len(search.exclude)]))
    query = np.ascontiguousarray(search.query[None], np.float32)
    if isinstance(search.index, ShardIndex):
        (exact,), _ = search.index.exact(query, search.k, allow=search.allow, exclude=exclude)
    else:
        rows = None if search.allow is None else search.allow.rows
        (exact,), _ = exact_search(search.embeddings, query, k=search.k, rows=rows, exclude=exclude)
    exact = exact[exact > -np.inf]
    if not len(exact):
        return 1.0
    threshold = exact[-1] - 1e-6 * max(abs(exact[0]), abs(exact[-1]))
    (scores,), _ = search.index.search(query, search.k, allow=search.allow, exclude=exclude)
    return min(1.0, float((scores >= threshold).sum()) / len(exact))
