"""The canary of a fleet, in its shared state, so that a restart or another gateway does not forget it.

Imports no torch.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from recsys.core.errors import UserError
from recsys.serving.gateway.router import Router
from recsys.serving.gateway.tower_cache import TowerCache
from recsys.serving.http.admin_messages import Canary
from recsys.serving.observability.metrics import Metrics
from recsys.serving.pools import FILES
from recsys.serving.shared_state import SharedState

log = logging.getLogger("recsys")

CANARY, READ_EVERY = "canary", 1.0
_decode = msgspec.json.Decoder(Canary | None)


def read_canary(content: bytes | None) -> Canary | None:
    """Return the canary of a document."""
    return None if content is None else _decode.decode(content)


class SharedCanary:
    """The canary that gateways share. The last write wins."""

    def __init__(self, state: SharedState, router: Router, towers: TowerCache) -> None:
        self._state, self._router, self._towers = state, router, towers
        self._read: bytes | None = None

    async def set(self, canary: Canary | None) -> None:
        """Use a canary, or none, now and after a restart, here and in the other gateways."""
        content = msgspec.json.encode(canary)
        try:
            await FILES.run(self._state.change, CANARY, lambda _: content)
        except OSError as error:
            # A gateway without a place to write keeps its canary in memory.
            log.warning("the canary is lost with this process: %s", error)
        self._read, self._router.canary = content, canary

    async def follow(self) -> None:
        """Use the canary of the fleet if it has changed."""
        try:
            content = await FILES.run(self._state.read, CANARY)
        except OSError as error:
            log.warning("the canary stays as it is: %s", error)
            return
        if content == self._read:
            return
        self._read = content
        try:
            canary = read_canary(content)
            if canary is not None:
                # Loaded before the first user of the canary comes.
                await self._towers.get(canary.version)
        except (UserError, msgspec.DecodeError) as error:
            log.error("%s: the canary stays as it is: %s", self._state.place, error)
            return
        self._router.canary = canary

    async def keep_following(self, metrics: Metrics) -> None:
        """Read the canary every second, until cancelled."""
        while True:
            with metrics.keep_going("canary"):
                await self.follow()
            await asyncio.sleep(READ_EVERY)
