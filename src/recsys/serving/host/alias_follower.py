"""An alias that moves is followed without a restart. Imports no torch."""

from __future__ import annotations

import asyncio
import logging

from recsys.core.errors import UserError
from recsys.serving.gateway.tower_cache import TowerCache
from recsys.serving.host.host import Host
from recsys.serving.host.releases import Releases

log = logging.getLogger("recsys")


class Following:
    """Looks at an alias, and serves what it points to: loaded beside the old version, checked, then switched to.

    Only a move of the alias counts: a version that was served by hand stays until then.

    Args:
        releases: whose alias it is.
        alias: that is followed.
        host: serves.
        towers: of the gateway in the same process; it gets the tower before the host serves the version.
        keep: versions that stay loaded, for rollback and requests under way.
        seconds: between two looks.
    """

    def __init__(
        self,
        releases: Releases,
        alias: str,
        host: Host,
        towers: TowerCache | None,
        keep: int = 3,
        seconds: float = 1.0,
    ) -> None:
        self._releases, self._alias, self._host, self._towers = releases, alias, host, towers
        self._keep, self._seconds = keep, seconds
        self._seen: str | None = releases.store.resolve(alias)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Keep looking."""
        self._task = asyncio.create_task(self._keep_looking())

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """Serve what the alias points to, if it has moved.

        Raises:
            UserError: the alias, or the release, is not what it should be. What was served still is, and the release is
                not tried again before the alias moves.
        """
        version = await asyncio.to_thread(self._releases.store.resolve, self._alias)
        if version == self._seen:
            return
        self._seen = version
        log.info("%s moved to %s: loading", self._alias, version)
        await asyncio.to_thread(self._host.load, version)
        if self._towers is not None:
            await self._towers.get(version)
        self._host.serve(version)
        self._host.trim(self._keep)
        log.info("serving %s", version)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self.look()
            except UserError as error:
                log.error("%s: still serving what it was: %s", self._alias, error)
            except Exception:
                # Without another look the alias would be lost.
                log.exception("%s: looking failed", self._alias)
