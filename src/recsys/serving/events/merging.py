"""What a history becomes when events arrive, and the bytes that hold it: one rule for all stores."""

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


def merge(held: Iterable[Event], arrivals: Iterable[Event], max_events: int) -> list[Event]:
    """`held` and those of `arrivals` that it lacks, by time, held ones first; the last `max_events`.

    An arrival that repeats n times is lacking as often as `held` has fewer than n.
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
    """Events of each user in the order given, repeats left out."""
    found: dict[UserId, dict[tuple[int | str, int], Event]] = {}
    for user_id, event in events:
        found.setdefault(user_id, {}).setdefault((event.item_id, event.timestamp), event)
    return {user_id: list(kept.values()) for user_id, kept in found.items()}


def _time(event: Event) -> int:
    return event.timestamp


def encode_events(events: Sequence[Event]) -> bytes:
    """Bytes of a history.

    Raises:
        UserError: a feature that is no plain value.
    """
    try:
        return _encoder.encode(events)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"events: found features that cannot be stored ({error})") from error


def decode_events(content: bytes, max_events: int) -> list[Event]:
    """The last `max_events` of a history; what was stored under a larger limit may hold more."""
    return _events.decode(content)[-max_events:]


def encode_profile(profile: Mapping[str, Any]) -> bytes:
    """Bytes of profile features."""
    return _encoder.encode(profile)


def decode_profile(content: bytes) -> dict[str, Any]:
    """Profile features from their bytes."""
    features: dict[str, Any] = _profile.decode(content)
    return features
