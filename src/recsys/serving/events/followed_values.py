"""Features that an event may have, of the release that an alias names. Imports no torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from recsys.core.errors import UserError
from recsys.release.runtime.feature_values import ValueType
from recsys.release.runtime.query_encoder import read_event_values
from recsys.release.store import ReleaseStore

log = logging.getLogger("recsys")

# Seconds until a release that could not be read is tried again: reading checks all of its files.
_RETRY_SECONDS = 60.0


class FollowedValues:
    """Event features of a release. The alias is read again every few seconds; a bad release leaves the present one.

    Raises:
        UserError: If the first release cannot be read.
    """

    def __init__(
        self, store: str, release: str, *, seconds: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._release, self._seconds, self._clock = ReleaseStore(store), release, seconds, clock
        self._read = clock()
        self._version = self._tried = self._store.resolve(release)
        self._tried_at = self._read
        self._values = read_event_values(*self._store.open(self._version))

    def __call__(self) -> Mapping[str, ValueType]:
        """Return the features."""
        if self._clock() - self._read >= self._seconds:
            self._read = self._clock()
            try:
                version = self._store.resolve(self._release)
                is_due = version != self._tried or self._read - self._tried_at >= _RETRY_SECONDS
                if version != self._version and is_due:
                    self._tried, self._tried_at = version, self._read
                    self._values = read_event_values(*self._store.open(version))
                    self._version = version
            except UserError as error:
                log.error("events are checked by the features of the release before: %s", error)
        return self._values
