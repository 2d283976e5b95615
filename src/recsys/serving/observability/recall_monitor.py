"""Does the index still find what exact search finds? Asked of a share of its searches. Imports no torch.

The tuning of a release measures recall on validation users; what users ask later, and with which filters, may be
another matter. A query of a sampled search is asked again, of the index and exactly, in a thread of its own. Where that
thread falls behind, samples are dropped and counted: serving never waits for it.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
from collections import deque
from typing import NamedTuple

import numpy as np

from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.index import AllowedRows, Index, exact_search
from recsys.serving.observability.metrics import Metrics

log = logging.getLogger(__name__)

# Answers that the mean is taken over, of each version.
WINDOW = 500


class Sample(NamedTuple):
    """One query of one search.

    Attributes:
        version: of the index.
        searched: the index that answered it.
        embeddings: of its items, [N, D].
        query: [D].
        k: results.
        allow: rows that might be returned; None: all.
        exclude: rows int32 [E] that the query might not get.
    """

    version: str
    searched: Index
    embeddings: Float32Array
    query: Float32Array
    k: int
    allow: AllowedRows | None
    exclude: np.ndarray[tuple[int], np.dtype[np.int32]]


class RecallMonitor:
    """Running recall of an index against exact search.

    Args:
        share: of the searches that are done again, 0 to 1.
        depth: samples that may wait; more are dropped.
        seed: of the choice of searches.
    """

    def __init__(
        self, share: float, *, depth: int = 16, seed: int | None = None, metrics: Metrics | None = None
    ) -> None:
        if not 0 <= share <= 1:
            raise UserError(f"monitor: found {share}, expected a share of the searches from 0 to 1")
        self.share, self._metrics = share, metrics or Metrics()
        self._random = random.Random(seed)
        self._waiting: queue.Queue[Sample | None] = queue.Queue(depth)
        self._recalls: dict[str, deque[float]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def wants(self) -> bool:
        """Whether the search that comes now is one of those that are done again."""
        return self.share > 0 and self._random.random() < self.share

    def put(self, sample: Sample) -> None:
        """Have a search done again; returns at once."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="recall-monitor", daemon=True)
                self._thread.start()
        try:
            self._waiting.put_nowait(sample)
        except queue.Full:
            self._metrics.recall_missed.inc()

    def forget(self, version: str) -> None:
        """Tell no more of a version that was unloaded."""
        with self._lock:
            if self._recalls.pop(version, None) is not None:
                self._metrics.set_recall(version, 0.0, samples=0)

    def drain(self) -> None:
        """Wait until every sample that was put is done."""
        self._waiting.join()

    def close(self) -> None:
        """End the thread, after what waits."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._waiting.put(None)
            thread.join()

    def _work(self) -> None:
        while (sample := self._waiting.get()) is not None:
            try:
                recall = recall_of(sample)
                with self._lock:
                    latest = self._recalls.setdefault(sample.version, deque(maxlen=WINDOW))
                    latest.append(recall)
                    self._metrics.set_recall(sample.version, sum(latest), samples=len(latest))
            except Exception:
                # A monitor that dies in silence would show its last value for ever.
                self._metrics.recall_missed.inc()
                log.exception("the recall of a search could not be measured")
            finally:
                self._waiting.task_done()
        self._waiting.task_done()


def recall_of(sample: Sample) -> float:
    """Share of the exact top-k that the index finds; 1 where nothing can be found.

    An item with the score of the exact k-th counts as found: which of equal ones is shown does not matter.
    """
    exclude = Ragged(sample.exclude, np.array([0, len(sample.exclude)]))
    rows = None if sample.allow is None else sample.allow.rows
    query = np.ascontiguousarray(sample.query[None], np.float32)
    (exact,), _ = exact_search(sample.embeddings, query, k=sample.k, rows=rows, exclude=exclude)
    exact = exact[exact > -np.inf]
    if not len(exact):
        return 1.0
    threshold = exact[-1] - 1e-6 * max(abs(exact[0]), abs(exact[-1]))
    (scores,), _ = sample.searched.search(query, sample.k, allow=sample.allow, exclude=exclude)
    return min(1.0, float((scores >= threshold).sum()) / len(exact))
