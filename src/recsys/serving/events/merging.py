"""Merging of histories, and their encoding as bytes; shared by all stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from recsys.core.errors import UserError
from recsys.serving.events.event_store import Event, UserId

_events = msgspec.msgpack.Decoder(list[Event])
_profile = msgspec.msgpack.Decoder(dict[str, Any])
_encoder = msgspec.msgpack.Encoder()


def merge(held: Iterable[Event], arrivals: Iterable[Event], *, max_events: int) -> list[Event]:
    """Return `held` and the missing `arrivals`, sorted by time, held ones first, cut to the last `max_events`.

    If an event arrives n times and is held m times, max(0, n - m) of the arrivals are missing.
    """
    merged = list(held)
    spare = Counter((event.item_id, event.timestamp) for event in merged)
    for event in arrivals:
        key = event.item_id, event.timestamp
        if spare[key]:
            spare[key] -= 1
        else:
            merged.append(event)
    merged.sort(key=_time)
    return merged[-max_events:]


def by_user(events: Iterable[tuple[UserId, Event]]) -> dict[UserId, list[Event]]:
    """Return the distinct events of each user, in the given order."""
    found: dict[UserId, dict[tuple[int | str, int], Event]] = {}
    for user_id, event in events:
        found.setdefault(user_id, {}).setdefault((event.item_id, event.timestamp), event)
    return {user_id: list(kept.values()) for user_id, kept in found.items()}


def _time(event: Event) -> int:
    return event.timestamp


def encode_events(events: Sequence[Event]) -> bytes:
    """Return the bytes of a history; raise `UserError` if a feature is not a plain value."""
    try:
        return _encoder.encode(events)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"events: found features that cannot be stored ({error})") from error


def decode_events(content: bytes, max_events: int) -> list[Event]:
    """Return the last `max_events` of a history; one that was stored under a larger limit may contain more."""
    return _events.decode(content)[-max_events:]


def encode_profile(profile: Mapping[str, Any]) -> bytes:
    """Return the bytes of profile features."""
    return _encoder.encode(profile)


def decode_profile(content: bytes) -> dict[str, Any]:
    """Return profile features from their bytes."""
    features: dict[str, Any] = _profile.decode(content)
    return features
