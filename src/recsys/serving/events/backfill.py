"""Copies the events and profiles of a data folder into an event store.

All events are copied, the test part included, because serving needs the latest history; batch retrieval with
`users=all` ranks from the same histories. Values are read from the raw tables, because codes of unknown categories and
hashed words cannot be decoded.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from recsys.core.errors import UserError
from recsys.core.schema import Schema
from recsys.core.suppression import SuppressionList
from recsys.data.histories import stream_events, stream_profiles
from recsys.data.preparation.engines import DuckDB, Session
from recsys.data.preparation.from_config import configured_data, with_root
from recsys.data.preparation.job import PreparationJob
from recsys.data.sources.files import fingerprint
from recsys.release.bounds import damaged
from recsys.release.files import read_config, read_schema
from recsys.release.manifest import CONFIG
from recsys.release.store import ReleaseStore
from recsys.serving.events import open_store
from recsys.serving.events.event_store import Event, EventStore, Restored, StoreError

log = logging.getLogger("recsys")

# Value of `data.root` that means the data that the release was trained on.
OWN = "own"
# Number of users in one write, and the progress of a source that is restored completely.
USERS_PER_WRITE = 2000
_WHOLE = -1


def backfill(store: EventStore, config: DictConfig, schema: Schema, *, root: str | None = None) -> int:
    """Merge a data folder into a store, and return the number of histories and profiles that were written.

    Stored events stay, and no event is stored twice. A folder that was restored completely is not read again. An
    interrupted backfill continues after its last write.

    Args:
        store: event store.
        config: stored configuration of the release, which determines how the data is read.
        schema: schema of the release, which determines the features that are read.
        root: folder of Parquet files; None for the data that the release was trained on.
    """
    # The store leaves out forgotten users itself.
    config.data.suppressed = None
    data = configured_data(config if root is None else with_root(config, root))
    job = data.plan()
    name = job.fingerprint
    kept = {(feature.owner, feature.name) for feature in schema.features}
    job = dataclasses.replace(job, features=[found for found in job.features if (found.owner, found.name) in kept])
    # A backfill with a smaller limit, or without a feature, does not count as this one.
    source = fingerprint([name, store.max_events, *sorted((found.owner, found.name) for found in job.features)])
    done = store.restored(source)
    if done == _WHOLE:
        log.info("%s: already in the event store", job.interactions.place)
        return 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, DuckDB().open(Path(scratch)) as session:
        written = _restore(store, _known_users(job, session, store.max_events), source=source, done=done)
    log.info(
        "%s: %d histories and profiles written to the event store in %.1f s",
        job.interactions.place,
        written,
        time.monotonic() - started,
    )
    return written


def _known_users(job: PreparationJob, session: Session, max_events: int) -> Iterator[Restored]:
    """Yield the events of all users, then all profiles, in the order of ids, so that a restart can skip a prefix."""
    for user_id, *columns in stream_events(job, session, max_events=max_events):
        yield Restored(user_id, [Event(*event) for event in zip(*columns, strict=True)], {})
    for user_id, profile in stream_profiles(job, session):
        yield Restored(user_id, (), profile)


def _restore(store: EventStore, known: Iterator[Restored], *, source: str, done: int) -> int:
    written = 0
    known = itertools.islice(known, done, None)
    while users := list(itertools.islice(known, USERS_PER_WRITE)):
        written += len(users)
        store.restore(_distinct(users), source, done=done + written)
    store.restore([], source, done=_WHOLE)
    return written


def _distinct(users: list[Restored]) -> list[Restored]:
    """Merge the entries of each user: one write may contain the last events and the first profiles."""
    found: dict[int | str, Restored] = {}
    for user in users:
        other = found.get(user.user_id)
        found[user.user_id] = user if other is None else other._replace(profile=user.profile)
    return list(found.values())


def fill(
    store: str,
    release: str | None,
    *,
    events: str,
    max_events: int,
    root: str,
    suppressed: str,
    max_age_days: float | None = None,
) -> int:
    """Merge a data folder into the event store at `events`, and return the number of written histories and profiles.

    `root` is a folder of Parquet files, or `own`. Users on the list `suppressed` are left out.
    """
    if release is None:
        raise UserError(f"data.root={root}: expected release=VERSION|ALIAS, which determines how the data is read")
    folder, manifest = ReleaseStore(store).open(release)
    config, schema = read_config(folder, manifest), read_schema(folder, manifest)
    try:
        opened = open_store(events, max_events, max_age_days=max_age_days)
        try:
            opened.suppress(SuppressionList(suppressed).lines())
            with damaged(folder / CONFIG):
                return backfill(opened, config, schema, root=None if root == OWN else root)
        finally:
            opened.close()
    except StoreError as error:
        raise UserError(str(error)) from error
