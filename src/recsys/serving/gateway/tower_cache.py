"""Tower cache: the user towers that a gateway has loaded, by version. Imports no torch."""

from __future__ import annotations

import logging

from recsys.core.errors import UserError
from recsys.release.runtime.query_encoder import QueryEncoder
from recsys.serving.async_lru import AsyncLRU
from recsys.serving.host.releases import ReleaseCache
from recsys.serving.http.problems import not_found, unavailable

log = logging.getLogger("recsys")

# Seconds until a release that could not be opened is read again, because that reads all of its files.
RETRY_AFTER = 5.0


class TowerCache(AsyncLRU[QueryEncoder]):
    """User towers of the most recently used versions.

    Args:
        max_events: number of events that are stored of each user; a warning is logged if a tower reads more.
    """

    def __init__(
        self,
        releases: ReleaseCache,
        size: int = 3,
        *,
        threads: int = 1,
        max_events: int | None = None,
        load_seconds: float | None = None,
    ) -> None:
        if size < 1:
            raise UserError(f"towers: found {size}, expected at least 1")
        super().__init__(self._open, size, retry_seconds=RETRY_AFTER, load_seconds=load_seconds)
        self._releases, self._threads, self._max_events = releases, threads, max_events

    def require(self, version: str) -> None:
        """Raise `Problem` (404) if the store has no release of that version."""
        try:
            self._releases.store.resolve(version)
        except UserError as error:
            raise not_found(str(error), "version") from error

    async def get(self, version: str) -> QueryEncoder:
        """Return the tower of a version; load it if necessary, once for all concurrent callers.

        Raises:
            Problem: If the store has no release of that version, or a damaged one (503).
        """
        try:
            return await super().get(version)
        except UserError as error:
            raise unavailable(f"the user tower of version {version} cannot be loaded") from error

    def open(self, version: str) -> QueryEncoder:
        """Load a tower in the caller's thread and run its self-check; raise `UserError` if the release is damaged."""
        folder, manifest = self._releases.open(version)
        known_items = self._releases.known_items(manifest.version)
        tower = QueryEncoder(folder, manifest, known_items=known_items, threads=self._threads)
        tower.check()
        if self._max_events is not None and self._max_events < manifest.max_history:
            log.warning(
                "max_events: %d events of a user are stored, but the tower of %s reads %d",
                self._max_events,
                manifest.version,
                manifest.max_history,
            )
        return tower

    def _open(self, version: str) -> QueryEncoder:
        try:
            return self.open(version)
        except UserError as error:
            log.error("user tower %s cannot be loaded: %s", version, error)
            raise
