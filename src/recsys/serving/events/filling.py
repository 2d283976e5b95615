"""Fills the event store of a server from a data folder before serving starts. Imports no torch."""

from __future__ import annotations

from recsys.core.errors import UserError
from recsys.release.store import ReleaseStore
from recsys.serving.events.backfill import backfill
from recsys.serving.events.event_store import StoreError
from recsys.serving.events.opening import open_store

# Value that means the data that the release was trained on.
OWN = "own"


def fill(store: str, release: str | None, *, events: str, max_events: int, root: str) -> int:
    """Merge a data folder into the event store, and return the number of written histories and profiles.

    Args:
        store: folder of releases.
        release: version or alias; determines how the data is read and which features it has.
        events: path or address of the event store.
        max_events: maximum number of stored events of a user.
        root: folder of Parquet files, or `own`.

    Raises:
        UserError: If there is no release, or the data or the store cannot be used.
    """
    if release is None:
        raise UserError(f"data.root={root}: expected release=VERSION|ALIAS, which determines how the data is read")
    folder, _ = ReleaseStore(store).open(release)
    try:
        opened = open_store(events, max_events)
        try:
            return backfill(opened, folder, root=None if root == OWN else root)
        finally:
            opened.close()
    except StoreError as error:
        raise UserError(str(error)) from error
