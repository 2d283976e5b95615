"""Microbatches: requests that arrive during an answer are answered together. Imports no torch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

from recsys.serving.http.admission import Admission, deadline, overloaded

K = TypeVar("K", bound=Hashable)
Req = TypeVar("Req")
Resp = TypeVar("Resp")


class _Waiting(NamedTuple, Generic[Req, Resp]):
    request: Req
    future: asyncio.Future[Resp]
    since: float
    deadline: float | None


class Microbatcher(Generic[K, Req, Resp]):
    """Groups requests by key and answers each group with one call.

    A microbatch starts as soon as the previous one of the same key has ended. No request waits for later ones; requests
    that arrive meanwhile form the next microbatch. A request that waited too long, or whose client gave up or left, is
    not answered.

    Args:
        answer: returns a response or an exception for each request of a microbatch, in order. It gets the latest
            deadline of the requests, None if one has none.
        max_size: maximum number of requests of a microbatch.
        admission: longest wait, and the limit that adapts to it.
    """

    def __init__(
        self,
        answer: Callable[[K, Sequence[Req]], Awaitable[Sequence[Resp | Exception]]],
        max_size: int,
        *,
        admission: Admission | None = None,
    ) -> None:
        self._answer, self._max_size = answer, max_size
        self._admission = admission or Admission(float("inf"))
        self._waiting: dict[K, list[_Waiting[Req, Resp]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, key: K, request: Req) -> Resp:
        """Return the response, or raise the exception that `answer` returned for this request."""
        future: asyncio.Future[Resp] = asyncio.get_running_loop().create_future()
        entry = _Waiting(request, future, self._admission.clock(), deadline.get())
        waiting = self._waiting.get(key)
        if waiting is None:
            # The task starts after everything that is ready now, so its first microbatch has all requests that arrived.
            self._waiting[key] = [entry]
            task = asyncio.create_task(self._work(key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            waiting.append(entry)
        return await future

    async def _work(self, key: K) -> None:
        while waiting := self._waiting[key]:
            batch, self._waiting[key] = self._next(waiting)
            if batch:
                deadlines = [entry.deadline for entry in batch]
                deadline.set(None if None in deadlines else max(given for given in deadlines if given is not None))
                try:
                    answers = await self._answer(key, [entry.request for entry in batch])
                except Exception as error:
                    # Every caller gets the error, so none is lost.
                    answers = [error] * len(batch)
                for entry, answer in zip(batch, answers, strict=True):
                    # A caller that went away has cancelled its future.
                    if not entry.future.done():
                        if isinstance(answer, Exception):
                            entry.future.set_exception(answer)
                        else:
                            entry.future.set_result(answer)
            # An answer that never waits would keep the event loop for all microbatches together.
            await asyncio.sleep(0)
        del self._waiting[key]

    def _next(
        self, waiting: Sequence[_Waiting[Req, Resp]]
    ) -> tuple[list[_Waiting[Req, Resp]], list[_Waiting[Req, Resp]]]:
        """Return the next microbatch and the rest, and refuse the requests that waited too long."""
        now, batch = self._admission.clock(), list[_Waiting[Req, Resp]]()
        self._admission.waited(now - waiting[0].since, is_crowded=4 * len(waiting) > 3 * self._max_size)
        for number, entry in enumerate(waiting):
            if len(batch) == self._max_size:
                return batch, list(waiting[number:])
            if entry.future.done():
                continue
            if now - entry.since > self._admission.queue_seconds:
                entry.future.set_exception(overloaded())
            elif entry.deadline is not None and now >= entry.deadline:
                entry.future.set_exception(overloaded("the deadline of the request has passed"))
            else:
                batch.append(entry)
        return batch, []
