"""The monitor tells the recall of exact search, drops rather than waits, and outlives what fails."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest

from recsys.core.errors import UserError
from recsys.index import AllowedRows, Exact
from recsys.serving.observability.background import BackgroundThread
from recsys.serving.observability.metrics import Metrics
from recsys.serving.observability.recall_monitor import RecallMonitor, SampledSearch, recall_of

# Row r scores r against [1].
EMBEDDINGS = np.arange(10, dtype=np.float32)[:, None]
NONE = np.zeros(0, np.int32)


def recalls(metrics: Metrics, version: str) -> tuple[float, ...]:
    """Sum and number of the latest recalls."""
    return tuple(metrics.value(f"recsys_index_recall_{name}", version=version) for name in ("sum", "samples"))


class Answering(Exact):
    """Returns fixed scores."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = np.array([scores], np.float32)

    def search(self, *_: Any, **__: Any) -> Any:
        return self.scores, np.zeros(self.scores.shape, np.int64)


def search(
    scores: list[float], version: str = "v", allow: AllowedRows | None = None, exclude: np.ndarray = NONE
) -> SampledSearch:
    query = np.ones(1, np.float32)
    return SampledSearch(version, Answering(scores), EMBEDDINGS, query, len(scores), allow, exclude)


def test_recall_by_hand() -> None:
    assert recall_of(search([9, 8, 7, 6])) == 1
    assert recall_of(search([9, 8, 5, 4])) == 0.5
    # 9 and 8 may not be given: the best four are 7, 6, 5, 4.
    assert recall_of(search([7, 6, 5, 3], exclude=np.array([9, 8], np.int32))) == 0.75
    even = AllowedRows(np.arange(10) % 2 == 0)
    assert recall_of(search([8, 6, 4, 0], allow=even)) == 0.75
    # Two are left, and one of them was found.
    two = AllowedRows(np.arange(10) < 2)
    assert recall_of(search([1, -np.inf, -np.inf], allow=two)) == 0.5
    nothing = AllowedRows(np.zeros(10, bool))
    assert recall_of(search([-np.inf], allow=nothing)) == 1


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_means_of_each_version(metrics: Metrics) -> None:
    background = BackgroundThread(metrics)
    monitor = RecallMonitor(1.0, background, metrics=metrics)
    for scores, version in (([9, 8], "a"), ([9, 0], "a"), ([9, 8], "b")):
        monitor.put(search(scores, version))
    background.drain()
    assert (recalls(metrics, "a"), recalls(metrics, "b")) == ((1.5, 2), (1, 1))
    monitor.forget("a")
    assert (recalls(metrics, "a"), recalls(metrics, "b")) == ((0, 0), (1, 1))
    background.close()


def test_a_full_queue_drops_items_without_waiting(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def slow(_: SampledSearch) -> float:
        begun.set()
        assert goes_on.wait(60)
        return 1.0

    monkeypatch.setattr("recsys.serving.observability.recall_monitor.recall_of", slow)
    background = BackgroundThread(metrics)
    monitor = RecallMonitor(1.0, background, metrics=metrics, depth=2)
    monitor.put(search([9]))
    assert begun.wait(60)
    for _ in range(5):
        monitor.put(search([9]))
    assert metrics.value("recsys_index_recall_missed") == 3
    goes_on.set()
    background.close()
    assert recalls(metrics, "v") == (3, 3)


def test_a_search_that_fails_is_counted_and_the_next_measured(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    background = BackgroundThread(metrics)
    monitor = RecallMonitor(1.0, background, metrics=metrics)
    monitor.put(dataclasses.replace(search([9]), query=np.ones(3, np.float32)))
    monitor.put(search([9]))
    background.close()
    assert metrics.value("recsys_index_recall_missed") == 1
    assert metrics.value("recsys_task_errors_total", task="recall_monitor") == 1
    assert "Traceback" in caplog.text
    assert recalls(metrics, "v") == (1, 1)


def test_the_share_of_searches(metrics: Metrics) -> None:
    background = BackgroundThread(metrics)
    monitor = RecallMonitor(0.25, background, metrics=metrics, seed=0)
    assert 200 < sum(monitor.wants() for _ in range(1000)) < 300
    assert not any(RecallMonitor(0.0, background, metrics=metrics).wants() for _ in range(10))
    with pytest.raises(UserError, match="monitor: found 2, expected a share"):
        RecallMonitor(2, background, metrics=metrics)
