"""The user towers that a gateway has loaded, by version. Imports no torch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict

from recsys.core.errors import UserError
from recsys.release.runtime.query_encoder import QueryEncoder
from recsys.serving.host.releases import Releases
from recsys.serving.http.problems import not_found, unavailable

log = logging.getLogger("recsys")

# Seconds until a release that could not be opened is looked at again: that reads all of it.
RETRY_AFTER = 5.0
_CANNOT = "the user tower of version {} cannot be loaded"


class TowerCache:
    """The user towers of the last versions that were asked for; loading one blocks nobody who has another.

    Args:
        releases: where they are loaded from.
        size: kept.
        threads: of one call of a tower.
        max_events: that are stored of a user; a tower that reads more is told in the log.
    """

    def __init__(self, releases: Releases, size: int = 3, threads: int = 1, max_events: int | None = None) -> None:
        if size < 1:
            raise UserError(f"towers: found {size}, expected at least 1")
        self._releases, self._size, self._threads, self._max_events = releases, size, threads, max_events
        self._held: OrderedDict[str, QueryEncoder] = OrderedDict()
        self._loading: dict[str, asyncio.Task[QueryEncoder]] = {}
        self._failed: dict[str, float] = {}

    @property
    def versions(self) -> list[str]:
        """Of the towers that are loaded, the one that was used last at the end."""
        return list(self._held)

    def held(self, version: str) -> QueryEncoder | None:
        """The tower of a version, if it is loaded."""
        tower = self._held.get(version)
        if tower is not None:
            self._held.move_to_end(version)
        return tower

    def require(self, version: str) -> None:
        """Refuse what no release is called.

        Raises:
            Problem: the store has none of that version (404).
        """
        try:
            self._releases.store.resolve(version)
        except UserError as error:
            raise not_found(str(error), "version") from error

    async def get(self, version: str) -> QueryEncoder:
        """The tower of a version, loaded where it is not; however many ask at once, it is loaded once.

        Raises:
            Problem: the store has no sound release of that version (503).
        """
        tower = self.held(version)
        if tower is not None:
            return tower
        failed = self._failed.get(version)
        if failed is not None and time.monotonic() < failed + RETRY_AFTER:
            raise unavailable(_CANNOT.format(version))
        if version not in self._loading:
            self._loading[version] = asyncio.create_task(self._load(version))
        # Shielded: one caller who goes away must not take it from the others.
        return await asyncio.shield(self._loading[version])

    async def _load(self, version: str) -> QueryEncoder:
        try:
            tower = await asyncio.to_thread(self.open, version)
        except UserError as error:
            log.error("user tower %s cannot be loaded: %s", version, error)
            self._failed[version] = time.monotonic()
            raise unavailable(_CANNOT.format(version)) from error
        finally:
            del self._loading[version]
        self._failed.pop(version, None)
        self.keep(tower)
        return tower

    def open(self, version: str) -> QueryEncoder:
        """Load a tower, in the caller's thread; it has answered its self-check.

        Raises:
            UserError: there is no such release, or it is not what it says.
        """
        folder, manifest = self._releases.open(version)
        tower = QueryEncoder(folder, manifest, self._releases.known_items(manifest.version), self._threads)
        tower.check()
        if self._max_events is not None and self._max_events < manifest.max_history:
            log.warning(
                "max_events: %d of a user are stored, and the tower of %s reads %d",
                self._max_events,
                manifest.version,
                manifest.max_history,
            )
        return tower

    def keep(self, tower: QueryEncoder) -> None:
        """Hold a tower that was opened; the one that was not used for longest goes where there are too many."""
        self._held[tower.version] = tower
        self._held.move_to_end(tower.version)
        while len(self._held) > self._size:
            self._held.popitem(last=False)
