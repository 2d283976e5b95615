"""One thread for background work. If its queue is full, work is dropped, so serving never waits. Imports no torch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from recsys.serving.observability.metrics import Metrics

T = TypeVar("T")


class Lane(Generic[T]):
    """Queue of one kind of work. `handle` gets up to `batch` items, oldest first, in the thread."""

    def __init__(
        self, handle: Callable[[Sequence[T]], None], *, depth: int, batch: int, thread: BackgroundThread
    ) -> None:
        self.handle, self.batch, self._depth, self._thread = handle, batch, depth, thread
        self.waiting: deque[T] = deque()

    def put(self, item: T) -> bool:
        """Queue an item and return True; return False at once if `depth` items are waiting or the thread is closed."""
        with self._thread.changed:
            if len(self.waiting) >= self._depth or not self._thread.start():
                return False
            self.waiting.append(item)
            self._thread.changed.notify_all()
            return True


class BackgroundThread:
    """A thread that serves its lanes in turn. It starts with the first item, and outlives errors of its lanes."""

    def __init__(self, metrics: Metrics) -> None:
        self.changed = threading.Condition()
        self._metrics = metrics
        self._lanes: dict[str, Lane[object]] = {}
        self._thread: threading.Thread | None = None
        self._is_busy = self._is_closed = False

    def lane(self, name: str, handle: Callable[[Sequence[T]], None], *, depth: int, batch: int = 1) -> Lane[T]:
        """Return a new lane; `name` is its label in the metrics."""
        lane = Lane(handle, depth=depth, batch=batch, thread=self)
        self._lanes[name] = lane  # type: ignore[assignment]  # lanes of several types share the dictionary
        return lane

    def start(self) -> bool:
        """Start the thread unless it runs; return False if it was closed. The caller holds `changed`."""
        if self._thread is None and not self._is_closed:
            self._thread = threading.Thread(target=self._work, name="background", daemon=True)
            self._thread.start()
        return not self._is_closed

    def drain(self) -> None:
        """Wait until no item is waiting or being handled."""
        with self.changed:
            self.changed.wait_for(lambda: not self._is_busy and not self._waiting())

    def close(self) -> None:
        """Handle the waiting items, then end the thread."""
        with self.changed:
            self._is_closed = True
            self.changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _waiting(self) -> bool:
        return any(lane.waiting for lane in self._lanes.values())

    def _work(self) -> None:
        while True:
            with self.changed:
                self._is_busy = False
                self.changed.notify_all()
                self.changed.wait_for(lambda: self._is_closed or self._waiting())
                if not self._waiting():
                    return
                self._is_busy = True
            for name, lane in self._lanes.items():
                with self.changed:
                    items = [lane.waiting.popleft() for _ in range(min(lane.batch, len(lane.waiting)))]
                if items:
                    with self._metrics.keep_going(name):
                        lane.handle(items)
