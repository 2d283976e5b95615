"""Group commit: appends that arrive during a write share the next write."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from recsys.serving.events.event_store import Event, StoreError, UserId

Events = Sequence[tuple[UserId, Event]]

# Maximum number of events of one write; a longer list gets its own write.
MAX_EVENTS = 4096


class _Waiting:
    def __init__(self, events: Events) -> None:
        self.events = events
        self.is_done = False
        self.error: Exception | None = None


class GroupCommit:
    """Combines concurrent appends: the thread that gets the lock writes all waiting events, all or none, durably."""

    def __init__(self, write: Callable[[Events], None]) -> None:
        self._write = write
        self._waiting: deque[_Waiting] = deque()
        self._queue = threading.Lock()
        self._turn = threading.Lock()

    def append(self, events: Events) -> None:
        """Return when `events` are written, or raise the error of the write."""
        own = _Waiting(events)
        with self._queue:
            self._waiting.append(own)
        while not own.is_done:
            with self._turn:
                # Another thread may have written them while this one waited for the lock.
                if not own.is_done:
                    self._write_group()
        if own.error is not None:
            raise own.error

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other threads from writing in this context."""
        with self._turn:
            yield

    def _write_group(self) -> None:
        with self._queue:
            group: list[_Waiting] = []
            size = 0
            while self._waiting and (not group or size + len(self._waiting[0].events) <= MAX_EVENTS):
                group.append(self._waiting.popleft())
                size += len(group[-1].events)
        error: Exception | None = StoreError("events: the write was interrupted")
        try:
            self._write([event for waiting in group for event in waiting.events])
            error = None
        except Exception as found:
            error = found
        finally:
            for waiting in group:
                waiting.error, waiting.is_done = error, True
