"""Compares the files of loaded releases with their manifests again, in the background. Imports no torch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from recsys.core.errors import UserError
from recsys.serving.host.releases import ReleaseCache
from recsys.serving.http.problems import ServerFault
from recsys.serving.observability.metrics import Metrics
from recsys.serving.pools import load

log = logging.getLogger("recsys")


class ReleaseWatch:
    """Watches the releases that a server has loaded.

    What is loaded is a copy, so answers stay what they were. But the store cannot be trusted any more, and a restart
    would fail, so the server reports that it is not ready until the files are as they were.

    Args:
        versions: versions to watch at present.
        seconds: time between two checks, each of which reads all files.
    """

    def __init__(
        self, releases: ReleaseCache, versions: Callable[[], Collection[str]], *, metrics: Metrics, seconds: float
    ) -> None:
        self._releases, self._versions, self._metrics, self._seconds = releases, versions, metrics, seconds
        self._faults: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start checking in the background."""
        self._task = asyncio.create_task(self._keep_checking())

    async def stop(self) -> None:
        """Stop checking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def require_sound(self) -> None:
        """Raise `Problem` (503) if a file has changed."""
        for fault in self._faults.values():
            raise ServerFault(fault)

    async def check(self) -> None:
        """Read all files of the loaded versions, and log and count those that changed."""
        versions = list(self._versions())
        self._faults = {version: fault for version, fault in self._faults.items() if version in versions}
        for version in versions:
            try:
                await load(self._releases.verify_again, version)
                self._faults.pop(version, None)
            except UserError as error:
                if self._faults.get(version) != str(error):
                    self._metrics.changed_releases.inc()
                    log.error("a loaded release has changed on disk: %s", error)
                self._faults[version] = str(error)

    async def _keep_checking(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            with self._metrics.keep_going("release_watch"):
                await self.check()
