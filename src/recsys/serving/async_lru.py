"""Cache of the most recently used values, which a thread loads on first use. Imports no torch."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from recsys.core.errors import UserError
from recsys.serving.pools import load

V = TypeVar("V")


class AsyncLRU(Generic[V]):
    """Values by key, for one event loop. Loading a value in a thread does not block requests for other values.

    A `UserError` of `load` is raised again for `retry_seconds` instead of loading again. So is a load that did not end
    within `load_seconds`.
    """

    def __init__(
        self,
        load: Callable[[str], V],
        size: int,
        *,
        retry_seconds: float = 0.0,
        load_seconds: float | None = None,
    ) -> None:
        self._load, self._size, self._retry_seconds, self._load_seconds = load, size, retry_seconds, load_seconds
        self._held: OrderedDict[str, V] = OrderedDict()
        self._loading: dict[str, asyncio.Task[V]] = {}
        self._failed: dict[str, tuple[float, UserError]] = {}

    @property
    def keys(self) -> list[str]:
        """Keys of the values that are kept, the most recently used one last."""
        return list(self._held)

    @property
    def values(self) -> list[V]:
        """Values that are kept, the most recently used one last."""
        return list(self._held.values())

    def has_failed(self, key: str) -> bool:
        """Return True if the value could not be loaded, and is not loaded again for now."""
        return key in self._failed and time.monotonic() < self._failed[key][0] + self._retry_seconds

    def held(self, key: str) -> V | None:
        """Return the value of a key if it is kept."""
        value = self._held.get(key)
        if value is not None:
            self._held.move_to_end(key)
        return value

    def keep(self, key: str, value: V) -> None:
        """Keep a value as the most recently used one."""
        self._held[key] = value
        self._held.move_to_end(key)
        while len(self._held) > self._size:
            self._held.popitem(last=False)

    async def get(self, key: str) -> V:
        """Return the value of a key. Concurrent callers share one load, which continues if a caller is cancelled."""
        value = self.held(key)
        if value is not None:
            return value
        if self.has_failed(key):
            raise self._failed[key][1]
        if key not in self._loading:
            self._loading[key] = asyncio.create_task(self._load_in_thread(key))
        return await asyncio.shield(self._loading[key])

    async def _load_in_thread(self, key: str) -> V:
        try:
            try:
                value = await load(self._load, key, seconds=self._load_seconds)
            except TimeoutError as error:
                raise UserError(f"{key} was not loaded within {self._load_seconds:g} s") from error
        except UserError as error:
            if self._retry_seconds:
                self._failed[key] = time.monotonic(), error
            raise
        finally:
            del self._loading[key]
        self._failed.pop(key, None)
        self.keep(key, value)
        return value
