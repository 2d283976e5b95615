"""Hands accepted connections over to the event loop. Imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable

from recsys.serving.http.admission import Admission

# Connections that one turn of the event loop takes, so that a crowd of them does not block it.
TURN = 16


class HandOver:
    """Connections on their way from the thread that accepts them to the event loop.

    The loop takes a few in each turn, whole requests before what must be parsed first.

    Args:
        loop: event loop.
        take: opens a connection in the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, take: Callable[[socket.socket], Awaitable[object]]) -> None:
        self._loop, self._take = loop, take
        self._whole: deque[tuple[socket.socket, Admission | None]] = deque()
        self._others: deque[tuple[socket.socket, Admission | None]] = deque()
        # Operations of sets are atomic, and two threads count.
        self._pending: dict[Admission | None, set[socket.socket]] = defaultdict(set)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_scheduled = False

    def add(self, opened: socket.socket, *, is_whole: bool, admission: Admission | None) -> None:
        """Hand over a connection, whose first request may be whole and limited; called in the thread that accepts."""
        self._pending[admission].add(opened)
        (self._whole if is_whole else self._others).append((opened, admission))
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon_threadsafe(self._begin_some)

    def num_pending(self, admission: Admission) -> int:
        """Return the number of requests of an admission that have not begun."""
        return len(self._pending[admission])

    def __len__(self) -> int:
        return sum(map(len, list(self._pending.values())))

    def _begin_some(self) -> None:
        self._is_scheduled = False
        for _ in range(TURN):
            waiting = self._whole or self._others
            if not waiting:
                return
            task = self._loop.create_task(self._begin(*waiting.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._is_scheduled = True
        self._loop.call_soon(self._begin_some)

    async def _begin(self, opened: socket.socket, admission: Admission | None) -> None:
        try:
            # A client that left meanwhile is no error.
            with contextlib.suppress(OSError):
                await self._take(opened)
        finally:
            self._pending[admission].discard(opened)
