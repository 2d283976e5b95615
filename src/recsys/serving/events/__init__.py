"""Recent events of every user: durable when acknowledged, and read by the next request. Imports no torch."""

from recsys.serving.events.event_store import (
    Event,
    EventStore,
    Outcome,
    Restored,
    StoreError,
    Unreadable,
    UserId,
    ignore,
)
from recsys.serving.events.incoming import parse_events
from recsys.serving.events.sqlite import SQLiteEvents

__all__ = [
    "Event",
    "EventStore",
    "Outcome",
    "Restored",
    "SQLiteEvents",
    "StoreError",
    "Unreadable",
    "UserId",
    "ignore",
    "open_store",
    "parse_events",
]


def open_store(
    place: str, max_events: int = 200, *, max_age_days: float | None = None, unreadable: Unreadable = ignore
) -> EventStore:
    """Return the store at `place`: the path of an SQLite file, or the address of a server (`redis://` and others).

    Older events than `max_age_days` are neither stored nor returned. `unreadable` is called with the number of stored
    events or profiles that cannot be decoded.

    Raises:
        UserError: If the place cannot be used.
        StoreError: If the server cannot be reached.
    """
    if "://" not in place:
        return SQLiteEvents(place, max_events, max_age_days=max_age_days, unreadable=unreadable)
    # Imported late, so that SQLite works without the client library.
    from recsys.serving.events.valkey import ValkeyEvents

    return ValkeyEvents(place, max_events, max_age_days=max_age_days, unreadable=unreadable)
