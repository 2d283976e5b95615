"""Requests that wait at the same time are answered together: one run of the tower, one search. Imports no torch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Asked = TypeVar("Asked")
Given = TypeVar("Given")


class Batches(Generic[Key, Asked, Given]):
    """Groups what is asked by key.

    A batch begins as soon as the one before it, of the same key, has ended: nobody waits for others to come, and what
    comes meanwhile is the next batch.

    Args:
        answer: gives an answer, or what was wrong, for each that is asked, in order.
        largest: batch.
    """

    def __init__(
        self, answer: Callable[[Key, Sequence[Asked]], Awaitable[Sequence[Given | Exception]]], largest: int
    ) -> None:
        self._answer, self._largest = answer, largest
        self._waiting: dict[Key, list[tuple[Asked, asyncio.Future[Given]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, key: Key, asked: Asked) -> Given:
        """The answer; raises what was wrong."""
        future: asyncio.Future[Given] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.get(key)
        if waiting is None:
            # The task begins after what is ready now, so all requests that have arrived are in its first batch.
            self._waiting[key] = [(asked, future)]
            task = asyncio.create_task(self._work(key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            waiting.append((asked, future))
        return await future

    async def _work(self, key: Key) -> None:
        while waiting := self._waiting[key]:
            batch, self._waiting[key] = waiting[: self._largest], waiting[self._largest :]
            try:
                answers = await self._answer(key, [asked for asked, _ in batch])
            except Exception as error:
                answers = [error] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                # Whoever asked may have gone away.
                if not future.done():
                    if isinstance(answer, Exception):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)
        del self._waiting[key]
