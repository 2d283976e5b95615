"""The store that a configuration names."""

from __future__ import annotations

from recsys.core.errors import UserError
from recsys.serving.events.event_store import EventStore
from recsys.serving.events.sqlite import SQLiteEvents

_SERVERS = ("redis", "rediss", "unix", "valkey", "valkeys")


def open_store(place: str, max_events: int = 200) -> EventStore:
    """The store at `place`: a path is an SQLite file, `redis://` and its relatives are a server.

    Raises:
        UserError: the place cannot be used.
        StoreError: the server cannot be reached.
    """
    scheme, separator, _ = place.partition("://")
    if not separator:
        return SQLiteEvents(place, max_events)
    if scheme not in _SERVERS:
        raise UserError(f"events: {scheme}://: no such store; expected a path or one of {', '.join(_SERVERS)}://")
    # Imported here: an installation with SQLite alone needs no client of a server.
    from recsys.serving.events.valkey import ValkeyEvents

    return ValkeyEvents(place, max_events)
