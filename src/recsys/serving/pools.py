"""Threads of a server, apart by purpose, so that a slow event store blocks nothing else. Imports no torch."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from recsys.core.cores import available_cores

P = ParamSpec("P")
T = TypeVar("T")


class Pool:
    """A number of threads that run one kind of blocking work."""

    def __init__(self, name: str, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Return the result of a call in a thread. Work whose caller is cancelled before its turn is not done."""
        call = functools.partial(contextvars.copy_context().run, function, *args, **options)
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)


# Writes of events, reads of histories, users and catalogue of the page, and searches and towers that take long. Few
# threads search: each one that runs Python delays the event loop.
EVENTS, HISTORIES, USERS, CATALOGUE = Pool("events", 8), Pool("histories", 8), Pool("users", 2), Pool("catalogue", 2)
SEARCH = Pool("search", max(1, min(4, available_cores() - 1)))
# Calls of a vector database, which wait and compute little.
DATABASE = Pool("database", 16)
# Short files of the store: aliases, item updates, state of the fleet.
FILES = Pool("files", 4)


async def load(function: Callable[..., T], *args: Any, seconds: float | None = None) -> T:
    """Return the result of a call in a thread of its own, so that one load that never ends does not block the next.

    Raises:
        TimeoutError: After that many seconds. The thread continues, and its result is dropped.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if not future.done():
            if error is None:
                future.set_result(result)  # type: ignore[arg-type]  # the result of `function`
            else:
                future.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = function(*args)
        except BaseException as found:
            error = found
        # The loop is closed if the server ended meanwhile.
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name="load", daemon=True).start()
    async with asyncio.timeout(seconds):
        return await future
