"""Events and profiles of a data folder for a store: all events, for the freshest history is the one to serve from.

Batch retrieval with `users=all` ranks from the same histories (`users=test` leaves the test part out, which is its
question). The raw values are read again rather than decoded from the prepared data set: codes of unknown categories and
hashed words have no way back.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from recsys.core.schema import Schema
from recsys.core.stored_config import load_config
from recsys.data.histories import stream_events, stream_profiles
from recsys.data.preparation.engines import DuckDB, Session
from recsys.data.preparation.from_config import at_root, configured_data
from recsys.data.preparation.job import PreparationJob
from recsys.data.sources.files import fingerprint
from recsys.release.manifest import CONFIG, SCHEMA
from recsys.serving.events.event_store import Event, EventStore, Restored

log = logging.getLogger("recsys")

# Users of one write, and the mark of a source that is restored as a whole.
_BATCH = 2000
_WHOLE = -1


def backfill(store: EventStore, release: Path, root: str | None = None) -> int:
    """Merge a data folder into a store; what is there already stays, and nothing is there twice.

    A folder that the store has whole is not read again, one that was interrupted goes on where it was.

    Args:
        store: of events.
        release: folder of a release, which says how the data is read and which features it has.
        root: folder of Parquet files; None for the release's own data.

    Returns:
        How many histories and profiles were written.

    Raises:
        UserError: whatever is wrong with the folder, by file and column.
        StoreError: the store cannot be written to.
    """
    config = load_config(release / CONFIG)
    data = configured_data(config if root is None else at_root(config, root))
    job = data.plan()
    name = job.fingerprint
    schema = Schema.load(release / SCHEMA)
    kept = {(feature.owner, feature.name) for feature in schema.features}
    job = dataclasses.replace(job, features=[found for found in job.features if (found.owner, found.name) in kept])
    # What was restored under a smaller limit, or without a feature, is not all of it.
    source = fingerprint([name, store.max_events, *sorted((found.owner, found.name) for found in job.features)])
    done = store.restored(source)
    if done == _WHOLE:
        log.info("%s: the store of events has it already", job.interactions.place)
        return 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, DuckDB().open(Path(scratch)) as session:
        written = _restore(store, _known(job, session, store.max_events), source, done)
    log.info(
        "%s: %d histories and profiles to the store of events in %.1f s",
        job.interactions.place,
        written,
        time.monotonic() - started,
    )
    return written


def _known(job: PreparationJob, session: Session, max_events: int) -> Iterator[Restored]:
    """First the events of all users, then the profiles, each in the order of ids: the same at every start."""
    for user_id, *columns in stream_events(job, session, max_events=max_events):
        yield Restored(user_id, [Event(*event) for event in zip(*columns, strict=True)], {})
    for user_id, profile in stream_profiles(job, session):
        yield Restored(user_id, (), profile)


def _restore(store: EventStore, known: Iterator[Restored], source: str, done: int) -> int:
    written = 0
    known = itertools.islice(known, done, None)
    while users := list(itertools.islice(known, _BATCH)):
        written += len(users)
        store.restore(_distinct(users), source, done + written)
    store.restore([], source, _WHOLE)
    return written


def _distinct(users: list[Restored]) -> list[Restored]:
    """Users once each, where events of the last ones and profiles of the first ones meet in one write."""
    found: dict[int | str, Restored] = {}
    for user in users:
        other = found.get(user.user_id)
        found[user.user_id] = user if other is None else other._replace(profile=user.profile)
    return list(found.values())
