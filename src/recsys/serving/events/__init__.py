"""Recent events of every user: durable when acknowledged, and read by the next request. Imports no torch."""

from recsys.serving.events.event_store import Event, EventStore, Restored, StoreError, UserId
from recsys.serving.events.incoming import parse_events
from recsys.serving.events.opening import open_store
from recsys.serving.events.sqlite import SQLiteEvents

__all__ = [
    "Event",
    "EventStore",
    "Restored",
    "SQLiteEvents",
    "StoreError",
    "UserId",
    "open_store",
    "parse_events",
]
