"""One thread serves several queues in turn, and no error of one of them ends it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from recsys.serving.observability.background import BackgroundThread
from recsys.serving.observability.metrics import Metrics


def test_lanes_take_turns_and_full_ones_refuse() -> None:
    handled: list[tuple[str, list[int]]] = []
    begun, goes_on = threading.Event(), threading.Event()

    def slow(items: Sequence[int]) -> None:
        begun.set()
        assert goes_on.wait(60)
        handled.append(("slow", list(items)))

    background = BackgroundThread(Metrics())
    one = background.lane("slow", slow, depth=2)
    other = background.lane("many", lambda items: handled.append(("many", list(items))), depth=5, batch=3)
    assert one.put(0)
    assert begun.wait(60)
    assert [one.put(n) for n in (1, 2, 3)] == [True, True, False]
    # A full lane leaves the others their room.
    assert [other.put(n) for n in range(6)] == [True] * 5 + [False]
    goes_on.set()
    background.close()
    assert handled == [("slow", [0]), ("many", [0, 1, 2]), ("slow", [1]), ("many", [3, 4]), ("slow", [2])]
    # Nothing handles items of a closed thread.
    assert not one.put(4)


def test_a_programming_error_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    handled: list[int] = []

    def handle(items: Sequence[int]) -> None:
        if 1 in items:
            raise RuntimeError("a fault")
        handled.extend(items)

    metrics = Metrics()
    background = BackgroundThread(metrics)
    lane = background.lane("work", handle, depth=10)
    for number in range(3):
        assert lane.put(number)
    background.drain()
    assert handled == [0, 2]
    assert metrics.value("recsys_task_errors_total", task="work") == 1
    assert "RuntimeError: a fault" in caplog.text
    background.close()
