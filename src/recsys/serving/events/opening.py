"""The store that a configuration names."""

from __future__ import annotations

from recsys.serving.events.protocol import EventStore
from recsys.serving.events.sqlite import SQLiteEvents


def open_store(place: str, max_events: int = 200) -> EventStore:
    """The store at `place`: a path is an SQLite file.

    Raises:
        UserError: the place cannot be used.
    """
    return SQLiteEvents(place, max_events)
