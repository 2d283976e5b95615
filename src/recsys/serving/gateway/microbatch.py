"""Microbatches: requests that arrive during an answer are answered together. Imports no torch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
Req = TypeVar("Req")
Resp = TypeVar("Resp")


class Microbatcher(Generic[K, Req, Resp]):
    """Groups requests by key and answers each group with one call.

    A microbatch starts as soon as the previous one of the same key has ended. No request waits for later ones; requests
    that arrive meanwhile form the next microbatch.

    Args:
        answer: returns a response or an exception for each request of a microbatch, in order.
        max_size: maximum number of requests of a microbatch.
    """

    def __init__(
        self, answer: Callable[[K, Sequence[Req]], Awaitable[Sequence[Resp | Exception]]], max_size: int
    ) -> None:
        self._answer, self._max_size = answer, max_size
        self._waiting: dict[K, list[tuple[Req, asyncio.Future[Resp]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, key: K, request: Req) -> Resp:
        """Return the response, or raise the exception that `answer` returned for this request."""
        future: asyncio.Future[Resp] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.get(key)
        if waiting is None:
            # The task starts after everything that is ready now, so its first microbatch has all requests that arrived.
            self._waiting[key] = [(request, future)]
            task = asyncio.create_task(self._work(key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            waiting.append((request, future))
        return await future

    async def _work(self, key: K) -> None:
        while waiting := self._waiting[key]:
            batch, self._waiting[key] = waiting[: self._max_size], waiting[self._max_size :]
            try:
                answers = await self._answer(key, [request for request, _ in batch])
            except Exception as error:
                # Every caller gets the error, so none is lost.
                answers = [error] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                # A caller that went away has cancelled its future.
                if not future.done():
                    if isinstance(answer, Exception):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)
        del self._waiting[key]
