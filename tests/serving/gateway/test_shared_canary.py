"""A canary outlives its gateway, and reaches the other gateways of the fleet."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from recsys.serving.gateway.shared_canary import SharedCanary
from recsys.serving.http.admin_messages import Canary
from recsys.serving.http.problems import unavailable
from recsys.serving.shared_state import open_state


class Towers:
    def __init__(self) -> None:
        self.loaded: list[str] = []

    async def get(self, version: str) -> None:
        if version == "bad":
            raise unavailable("cannot be loaded")
        self.loaded.append(version)


def gateway(path: Path) -> tuple[SharedCanary, Any, Towers]:
    router, towers = SimpleNamespace(canary=None), Towers()
    return SharedCanary(open_state(str(path)), router, towers), router, towers  # type: ignore[arg-type]  # the parts that are used


def test_a_canary_is_known_after_a_restart_and_by_others(tmp_path: Path) -> None:
    path = tmp_path / "state/canary.json"

    async def scenario() -> None:
        first, router, _ = gateway(path)
        await first.follow()
        assert router.canary is None
        await first.set(Canary("v2", 0.1))
        assert router.canary == Canary("v2", 0.1)
        again, router_again, towers = gateway(path)
        await again.follow()
        assert (router_again.canary, towers.loaded) == (Canary("v2", 0.1), ["v2"])
        await again.set(None)
        await first.follow()
        assert router.canary is None
        for content in (b"[", b'{"version":"bad","share":0.5}', b'{"version":"v2","share":7}'):
            await first.set(Canary("v3", 0.2))
            path.write_bytes(content)
            await first.follow()
            assert router.canary == Canary("v3", 0.2)

    asyncio.run(scenario())
