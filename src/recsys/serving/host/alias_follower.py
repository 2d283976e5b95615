"""Alias follower: a server switches to the release that an alias moves to, without a restart. Imports no torch."""

from __future__ import annotations

import asyncio
import logging

from recsys.core.errors import UserError
from recsys.serving.gateway.tower_cache import TowerCache
from recsys.serving.host.host import Host
from recsys.serving.host.releases import ReleaseCache
from recsys.serving.observability.metrics import Metrics
from recsys.serving.pools import FILES, load

log = logging.getLogger("recsys")


class AliasFollower:
    """Reads an alias regularly. A new release is loaded in addition to the old one and checked before it is served.

    Only a move of the alias counts: a version that an operator serves by hand stays until the alias moves.

    Args:
        towers: tower cache of the gateway in the same process, which gets the tower before the host serves the version;
            None without a gateway.
        keep: number of versions that stay loaded, for rollback and for requests under way.
    """

    def __init__(
        self,
        releases: ReleaseCache,
        alias: str,
        *,
        host: Host,
        towers: TowerCache | None,
        metrics: Metrics,
        keep: int = 3,
        seconds: float = 1.0,
        load_seconds: float = 600.0,
    ) -> None:
        self._releases, self._alias, self._host, self._towers = releases, alias, host, towers
        self._metrics, self._keep, self._seconds, self._load_seconds = metrics, keep, seconds, load_seconds
        self._loading: asyncio.Task[None] | None = None
        self._seen: str | None = releases.store.resolve(alias)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start reading the alias in the background."""
        self._task = asyncio.create_task(self._keep_following())

    async def stop(self) -> None:
        """Stop reading the alias."""
        tasks = [task for task in (self._task, self._loading) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def follow(self) -> None:
        """Load and serve the release of the alias if the alias has moved.

        A damaged release, or one that is not loaded in time, leaves the present version, and is not tried again before
        the alias moves. If the alias moves during a load, the new release is loaded at once.

        Raises:
            UserError: If the alias is damaged.
        """
        version = await FILES.run(self._releases.store.resolve, self._alias)
        if version == self._seen:
            return
        self._seen = version
        if self._loading is not None:
            # The alias has moved on: what is loaded for it is not served any more.
            self._loading.cancel()
        self._loading = asyncio.create_task(self._switch(version))
        await asyncio.wait({self._loading}, timeout=self._seconds)

    async def _switch(self, version: str) -> None:
        log.info("%s moved to %s: loading", self._alias, version)
        with self._metrics.keep_going("alias_follower"):
            try:
                await load(self._host.load, version, seconds=self._load_seconds)
                if self._towers is not None:
                    async with asyncio.timeout(self._load_seconds):
                        await self._towers.get(version)
                self._host.serve(version)
                self._host.trim(self._keep)
                log.info("serving %s", version)
            except TimeoutError:
                log.error("%s: %s was not loaded in time, and the present version stays", self._alias, version)
            except UserError as error:
                log.error("%s: the present version stays: %s", self._alias, error)

    async def _keep_following(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            with self._metrics.keep_going("alias_follower"):
                try:
                    await self.follow()
                except UserError as error:
                    log.error("%s: the present version stays: %s", self._alias, error)
