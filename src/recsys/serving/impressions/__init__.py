"""Impressions: served answers by id, and the outcomes that join to them. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from recsys.serving.impressions.impression_store import ImpressionStore
from recsys.serving.impressions.sqlite import SQLiteImpressions
from recsys.serving.valkey import is_server

__all__ = ["ImpressionStore", "impressions_file", "open_impressions"]


def impressions_file(place: str) -> Path | None:
    """Return the file of impressions beside a file of events; None if the place is a server, which keeps both."""
    return None if is_server(place) else Path(place).with_name(f"{Path(place).stem}.impressions.sqlite")


def open_impressions(place: str, *, keep_hours: float = 168.0, max_bytes: int = 256 << 20) -> ImpressionStore:
    """Return the store of impressions that belongs to an event store, by the place of the event store.

    An SQLite file of events has a second file beside it. A server keeps both.

    Args:
        place: path or address, as of `recsys.serving.events.open_store`.
        keep_hours: time after which impressions and outcomes are removed.
        max_bytes: size beyond which the oldest impressions are removed.

    Raises:
        UserError: If the place cannot be used.
        StoreError: If the server cannot be reached.
    """
    keep_seconds = int(3600 * keep_hours)
    path = impressions_file(place)
    if path is not None:
        return SQLiteImpressions(path, keep_seconds=keep_seconds, max_bytes=max_bytes)
    # Imported late, so that SQLite works without the client library.
    from recsys.serving.impressions.valkey import ValkeyImpressions

    return ValkeyImpressions(place, keep_seconds=keep_seconds, max_bytes=max_bytes)
