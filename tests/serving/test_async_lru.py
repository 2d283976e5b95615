"""Values are loaded once, failures are remembered for a while, and the least recently used value is dropped."""

from __future__ import annotations

import asyncio
import threading

import pytest

from recsys.core.errors import UserError
from recsys.serving.async_lru import AsyncLRU


class Loader:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.goes_on = threading.Event()
        self.goes_on.set()

    def __call__(self, key: str) -> str:
        self.calls.append(key)
        assert self.goes_on.wait(60)
        if key == "bad":
            raise UserError("no such release")
        return key.upper()


def test_the_least_recently_used_value_is_dropped() -> None:
    loader = Loader()
    cache = AsyncLRU(loader, 2)

    async def scenario() -> None:
        for key in ("a", "b", "a", "c"):
            assert await cache.get(key) == key.upper()
        assert cache.keys == ["a", "c"]
        assert (cache.held("b"), cache.held("a")) == (None, "A")
        assert cache.keys == ["c", "a"]
        cache.keep("d", "D")
        assert cache.keys == ["a", "d"]

    asyncio.run(scenario())
    assert loader.calls == ["a", "b", "c"]


def test_concurrent_callers_share_one_loading_that_outlives_a_caller() -> None:
    loader = Loader()
    cache = AsyncLRU(loader, 2)

    async def scenario() -> None:
        loader.goes_on.clear()
        first, second = (asyncio.create_task(cache.get("a")) for _ in range(2))
        while not loader.calls:
            await asyncio.sleep(0)
        first.cancel()
        # The loading of one key keeps nobody waiting who needs another.
        cache.keep("b", "B")
        assert await cache.get("b") == "B"
        loader.goes_on.set()
        assert await second == "A"
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(scenario())
    assert loader.calls == ["a"]


@pytest.mark.parametrize(("retry_seconds", "calls"), [(0.0, 2), (3600.0, 1)])
def test_a_failure_is_remembered_for_a_while(retry_seconds: float, calls: int) -> None:
    loader = Loader()
    cache = AsyncLRU(loader, 2, retry_seconds=retry_seconds)

    async def scenario() -> None:
        for _ in range(2):
            with pytest.raises(UserError, match="no such release"):
                await cache.get("bad")
        assert await cache.get("a") == "A"

    asyncio.run(scenario())
    assert loader.calls == ["bad"] * calls + ["a"]
