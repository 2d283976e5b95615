"""The canary of a fleet, in a file that its gateways share, so that a restart or another gateway does not forget it.

Imports no torch.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec

from recsys.core.errors import UserError
from recsys.core.io import atomic_write
from recsys.serving.gateway.router import Router
from recsys.serving.gateway.tower_cache import TowerCache
from recsys.serving.http.messages import Canary
from recsys.serving.observability.metrics import Metrics
from recsys.serving.pools import FILES

log = logging.getLogger("recsys")

READ_EVERY = 1.0
_decode = msgspec.json.Decoder(Canary | None)


class SharedCanary:
    """The canary that gateways share through one file. The last write wins."""

    def __init__(self, path: Path, router: Router, towers: TowerCache) -> None:
        self._path, self._router, self._towers = path, router, towers
        self._read: bytes | None = None

    async def set(self, canary: Canary | None) -> None:
        """Use a canary, or none, now and after a restart, here and in the other gateways."""
        content = msgspec.json.encode(canary)
        try:
            await FILES.run(self._write, content)
        except OSError as error:
            # A gateway without a place to write keeps its canary in memory.
            log.warning("the canary is lost with this process: %s: %s", self._path, error.strerror)
        self._read, self._router.canary = content, canary

    async def follow(self) -> None:
        """Use the canary of the file if it has changed."""
        content = await FILES.run(self._content)
        if content == self._read:
            return
        self._read = content
        try:
            canary = None if content is None else _decode.decode(content)
            if canary is not None:
                # Loaded before the first user of the canary comes.
                await self._towers.get(canary.version)
        except (UserError, msgspec.DecodeError) as error:
            log.error("%s: the canary stays as it is: %s", self._path, error)
            return
        self._router.canary = canary

    async def keep_following(self, metrics: Metrics) -> None:
        """Read the file every second, until cancelled."""
        while True:
            with metrics.keep_going("canary"):
                await self.follow()
            await asyncio.sleep(READ_EVERY)

    def _write(self, content: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self._path, content)

    def _content(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except OSError:
            return None
