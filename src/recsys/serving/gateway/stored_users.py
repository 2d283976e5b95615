"""Stored histories and profiles of users, within a time limit. Imports no torch.

If the event store does not answer in time, requests are answered without them, and say so. The store then rests for a
moment, so that not every request waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from recsys.serving.events import Event, EventStore, StoreError, UserId
from recsys.serving.events.event_store import PartlyReadError
from recsys.serving.gateway.microbatch import Microbatcher
from recsys.serving.observability.metrics import Metrics
from recsys.serving.pools import HISTORIES

log = logging.getLogger("recsys")

# Seconds in which a store that failed is not asked.
REST_SECONDS = 1.0
# Users of one read in the event loop. If it took longer than so many seconds, a thread reads the others.
_USERS, _LONG_SECONDS = 8, 0.005
_MAX_READ = 64


class Stored(NamedTuple):
    """Events, oldest first, and profile features of a user; `is_missing` if the store did not answer."""

    history: Sequence[Event]
    profile: Mapping[str, Any]
    is_missing: bool = False


MISSING = Stored((), {}, True)


class StoredUsers:
    """Reader of the event store. A store in this process is read in the event loop, a server in threads.

    Args:
        seconds: time limit of one read.
    """

    def __init__(
        self,
        events: EventStore,
        metrics: Metrics,
        *,
        seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._events, self._metrics, self._seconds, self._clock = events, metrics, seconds, clock
        self.is_embedded = events.is_embedded
        self._rests_until = self._quiet_until = -float("inf")
        self._reads: Microbatcher[bool, UserId, Stored] = Microbatcher(self._read_in_thread, _MAX_READ)

    async def of(self, user_id: UserId, *, profiled: bool) -> Stored:
        """Return what a server has stored of a user; concurrent calls share a round trip."""
        if self._clock() < self._rests_until:
            return MISSING
        return await self._reads.submit(profiled, user_id)

    async def all_of(self, user_ids: Sequence[UserId], *, profiled: bool) -> list[Stored]:
        """Return what the store in this process has of each user."""
        found: list[Stored] = []
        begin = time.perf_counter()
        for number in range(0, len(user_ids), _USERS):
            if self._clock() < self._rests_until:
                return found + [MISSING] * (len(user_ids) - len(found))
            if number and time.perf_counter() - begin > _LONG_SECONDS:
                return found + list(await self._read_in_thread(profiled, user_ids[number:]))
            try:
                found += self._read(user_ids[number : number + _USERS], profiled)
            except StoreError as error:
                self._rest(str(error))
                return found + [MISSING] * (len(user_ids) - len(found))
        return found

    async def _read_in_thread(self, profiled: bool, user_ids: Sequence[UserId]) -> Sequence[Stored]:
        try:
            if self._clock() >= self._rests_until:
                async with asyncio.timeout(self._seconds):
                    return await HISTORIES.run(self._read, user_ids, profiled)
        except StoreError as error:
            self._rest(str(error))
        except TimeoutError:
            self._rest(f"no answer within {self._seconds:g} s")
        return [MISSING] * len(user_ids)

    def _read(self, user_ids: Sequence[UserId], profiled: bool) -> list[Stored]:
        with self._metrics.timed("events"):
            try:
                histories: Sequence[list[Event] | None] = self._events.histories(user_ids)
            except PartlyReadError as error:
                if self._clock() >= self._quiet_until:
                    self._quiet_until = self._clock() + REST_SECONDS
                    log.warning("some requests are answered without stored histories: %s", error)
                histories = error.histories
            return [
                MISSING if history is None else Stored(history, self._events.profile(user) if profiled else {})
                for user, history in zip(user_ids, histories, strict=True)
            ]

    def _rest(self, reason: str) -> None:
        log.warning("requests are answered without stored histories: %s", reason)
        self._rests_until = self._clock() + REST_SECONDS
