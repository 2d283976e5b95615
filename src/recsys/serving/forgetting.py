"""Erasure of users from what a server keeps: event store, impressions and request samples. Imports no torch.

The list of forgotten users is durable before anything is removed, and every step can be repeated. A process that was
killed leaves nothing that the same call does not finish.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from recsys.core.suppression import SuppressionList, hash_of
from recsys.serving.events import EventStore, UserId
from recsys.serving.events.byte_search import search_file
from recsys.serving.events.event_store import Erased, Searched, both_forms
from recsys.serving.impressions import ImpressionStore
from recsys.serving.observability.metrics import Metrics
from recsys.serving.observability.samples import PATTERN, patterns_of, remove_old, remove_users
from recsys.serving.pools import load

log = logging.getLogger("recsys")

# Seconds between two removals of old data.
EXPIRE_EVERY = 3600.0


class Forgotten(NamedTuple):
    """Data removed of some users, and the files that were searched for them afterwards.

    Attributes:
        users: number of users; a number and the text of its digits are one.
        listed: those that were not on the list of forgotten users before; None if the list cannot be written.
        histories, profiles: rows that the event store had.
        samples: request samples that were removed.
        searched: files, and the number of places in them that still name a user.
    """

    users: int
    listed: int | None
    histories: int
    profiles: int
    samples: int
    searched: list[Searched]

    @property
    def found(self) -> int:
        """Number of places that still name a user."""
        return sum(one.found for one in self.searched)


def forget(
    user_ids: Sequence[UserId],
    *,
    suppressed: SuppressionList,
    store: EventStore | None,
    samples: Path,
    impressions: ImpressionStore | None = None,
) -> Forgotten:
    """Erase users, and search the files for them afterwards.

    Args:
        user_ids: ids of any type that a store accepts.
        suppressed: list of forgotten users, which is written first.
        store: event store; None if there is none.
        samples: folder of request samples, which need not exist.
        impressions: store of served answers; None if there is none.

    Raises:
        StoreError: If the event store cannot answer now. The users are on the list, and the call can be repeated.
    """
    hashes = {hash_of(user) for user in user_ids}
    try:
        listed = suppressed.add(sorted(hashes))
    except OSError as error:
        # A gateway may have a folder of releases that it cannot write to. Its event store keeps the users out.
        if store is None:
            raise
        log.warning("%s: the list of forgotten users cannot be written: %s", suppressed.path, error.strerror)
        listed = None
    erased = Erased(0, 0, frozenset()) if store is None else store.forget(user_ids)
    if impressions is not None:
        impressions.forget(both_forms(user_ids))
    removed = remove_users(samples, hashes)
    searched = [] if store is None else store.search(user_ids, erased.patterns)
    if impressions is not None:
        searched += impressions.search(user_ids)
    searched += [search_file(path, patterns_of(user_ids)) for path in sorted(samples.rglob(PATTERN))]
    return Forgotten(len(hashes), listed, erased.histories, erased.profiles, removed, searched)


def keep_out(store: EventStore, hashes: Sequence[str], *, samples: Path, impressions: ImpressionStore | None) -> None:
    """Erase listed users from stores and samples, which may be new, restored from a copy, or left by a killed process.

    The event store may know them already, so each call reads all impressions and samples if the list has users.
    """
    if not hashes:
        return
    store.suppress(hashes)
    listed = set(hashes)
    remove_users(samples, listed)
    if impressions is not None:
        users = {one.user_id for _, batch in impressions.batches(0) for one in batch.impressions}
        if gone := [user for user in users if user is not None and hash_of(user) in listed]:
            impressions.forget(gone)


def remove_expired(
    store: EventStore, samples: Path, *, days: float | None, impressions: ImpressionStore | None = None
) -> None:
    """Remove impressions that have expired, and events and samples older than so many days."""
    if impressions is not None:
        impressions.expire()
    if days is None:
        return
    histories, files = store.expire(), remove_old(samples, time.time() - days * 86_400)
    if histories or files:
        log.info(
            "retention: %d histories had events older than %g days; %d old files of samples", histories, days, files
        )


async def keep_expiring(remove: Callable[[], None], metrics: Metrics) -> None:
    """Remove old data now and every hour, until cancelled."""
    while True:
        with metrics.keep_going("retention"):
            await load(remove)
        await asyncio.sleep(EXPIRE_EVERY)
