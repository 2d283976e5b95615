"""Looks at all connections of a server regularly, and ends those that are slow. Imports no torch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from recsys.serving.http.connection import Connection

# Seconds between two looks at all connections.
SWEEP_SECONDS = 1.0
# Bytes of all answers and parts of requests that wait for their clients.
UNREAD_BYTES = 64 << 20
# Connections that are looked at in one turn of the event loop.
_SWEPT = 2000


async def sweep(all_connections: Callable[[], set[Any]], seconds: float) -> None:
    """Close connections that are slow to send a request or to read an answer, until cancelled.

    If answers that clients do not read and parts of requests take too much memory together, the oldest are closed
    first.
    """
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        now, unread = time.monotonic(), list[tuple[float, int, Connection]]()
        for number, one in enumerate(list(all_connections())):
            if number % _SWEPT == _SWEPT - 1:
                await asyncio.sleep(0)
            if isinstance(one, Connection) and one.is_overdue(now, seconds):
                one.transport.abort()
            elif isinstance(one, Connection) and one.stalled is not None:
                unread.append((one.stalled, one.transport.get_write_buffer_size(), one))
            elif isinstance(one, Connection) and one.began is not None and one.received:
                unread.append((one.began, one.received, one))
        excess = sum([size for _, size, _ in unread]) - UNREAD_BYTES
        for _, size, one in sorted(unread, key=lambda found: found[0]):
            if excess <= 0:
                break
            excess -= size
            one.transport.abort()
