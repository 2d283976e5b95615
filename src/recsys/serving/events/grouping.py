"""Group commit: appends that arrive during a write share the next write."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Generic, TypeVar

from recsys.serving.events.event_store import StoreError

E = TypeVar("E")
R = TypeVar("R")

# Maximum number of events of one write; a longer list gets its own write.
MAX_EVENTS = 4096


class GroupCommit(Generic[E, R]):
    """Combines concurrent appends: the thread that gets the lock writes all waiting events, all or none, durably.

    Args:
        write: returns the outcome of each event.
        is_divisible: whether appends that failed together are written one by one, because some of them may succeed.
    """

    def __init__(self, write: Callable[[Sequence[E]], list[R]], *, is_divisible: bool = False) -> None:
        self._write, self._is_divisible = write, is_divisible
        self._waiting: deque[tuple[Sequence[E], Future[list[R]]]] = deque()
        self._queue = threading.Lock()
        self._turn = threading.Lock()

    def append(self, events: Sequence[E]) -> list[R]:
        """Return the outcome of each event when they are written, or raise the error of the write."""
        written: Future[list[R]] = Future()
        with self._queue:
            self._waiting.append((events, written))
        while not written.done():
            with self._turn:
                # Another thread may have written them while this one waited for the lock.
                if not written.done():
                    self._write_group()
        return written.result()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other threads from writing in this context."""
        with self._turn:
            yield

    def _write_group(self) -> None:
        with self._queue:
            group: list[tuple[Sequence[E], Future[list[R]]]] = []
            size = 0
            while self._waiting and (not group or size + len(self._waiting[0][0]) <= MAX_EVENTS):
                group.append(self._waiting.popleft())
                size += len(group[-1][0])
        self._settle(group)

    def _settle(self, group: Sequence[tuple[Sequence[E], Future[list[R]]]]) -> None:
        error: Exception | None = StoreError("events: the write was interrupted")
        outcomes: list[R] = []
        try:
            outcomes = self._write([event for events, _ in group for event in events])
            error = None
        except Exception as found:
            error = found
            if self._is_divisible and isinstance(found, StoreError) and len(group) > 1:
                for one in group:
                    self._settle([one])
        finally:
            begin = 0
            for events, written in group:
                if error is None:
                    written.set_result(outcomes[begin : begin + len(events)])
                    begin += len(events)
                elif not written.done():
                    written.set_exception(error)
