"""Merging of histories, and their encoding as bytes; shared by all stores."""

from __future__ import annotations

import bisect
import logging
import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from recsys.core.errors import UserError
from recsys.serving.events.event_store import MAX_HISTORY_BYTES, Event, Outcome, Unreadable, UserId, ignore

log = logging.getLogger("recsys")

_events = msgspec.msgpack.Decoder(list[Event])
_profile = msgspec.msgpack.Decoder(dict[str, Any])
_encoder = msgspec.msgpack.Encoder()
# First byte of a history with events in the order of arrival (`growing`): a list with its length in 4 bytes.
GROWING = b"\xdd"
_time = operator.attrgetter("timestamp")


def merge(
    held: Iterable[Event], arrivals: Iterable[Event], *, max_events: int, since: int | None = None
) -> list[Event]:
    """Return `held` and the missing `arrivals`, sorted by time, held ones first, cut to the last `max_events`.

    If an event arrives n times and is held m times, max(0, n - m) of the arrivals are missing. Events before `since`
    are left out, and beyond `MAX_HISTORY_BYTES` the oldest events, too.
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
    return _bounded(younger(merged[-max_events:], since))


def younger(events: list[Event], since: int | None) -> list[Event]:
    """Return the events from the second `since` on; all if it is None. The events are sorted by time."""
    return events if since is None else events[bisect.bisect_left(events, since, key=_time) :]


def _bounded(events: list[Event]) -> list[Event]:
    if len(_encode(events)) <= MAX_HISTORY_BYTES:
        return events
    # The header of a list has at most 5 bytes.
    left, kept = MAX_HISTORY_BYTES - 5, len(events)
    while kept and (left := left - len(_encode(events[kept - 1]))) >= 0:
        kept -= 1
    return events[kept:]


class Arrivals:
    """Events of one write: merges them into held histories, and knows the outcome of each."""

    def __init__(self, events: Sequence[tuple[UserId, Event]], max_events: int, *, since: int | None = None) -> None:
        self._events, self._max_events, self._since = events, max_events, since
        self._by_user: dict[UserId, dict[tuple[int | str, int], Event]] = {}
        self._held: dict[UserId, set[tuple[int | str, int]]] = {}
        self._kept: dict[UserId, set[tuple[int | str, int]]] = {}
        for user_id, event in events:
            self._by_user.setdefault(user_id, {}).setdefault(_key(event), event)

    @property
    def users(self) -> list[UserId]:
        """Users of the events."""
        return list(self._by_user)

    def merge(self, user_id: UserId, held: Sequence[Event]) -> list[Event]:
        """Return the history of a user after the write. A repeated call replaces the outcome of the one before."""
        kept = merge(held, self._by_user[user_id].values(), max_events=self._max_events, since=self._since)
        self._held[user_id] = set(map(_key, held))
        self._kept[user_id] = set(map(_key, kept))
        return kept

    def drop(self, user_id: UserId) -> None:
        """Store nothing of a user."""
        self._held[user_id], self._kept[user_id] = set(), set()

    def outcomes(self) -> list[Outcome]:
        """Return the outcome of each event, when the histories of all users are merged."""
        found, seen = [], {user_id: set(held) for user_id, held in self._held.items()}
        for user_id, event in self._events:
            key = _key(event)
            if key in seen[user_id]:
                found.append(Outcome.REPEATED)
            else:
                found.append(Outcome.STORED if key in self._kept[user_id] else Outcome.DROPPED)
                seen[user_id].add(key)
        return found


def _key(event: Event) -> tuple[int | str, int]:
    return event.item_id, event.timestamp


def _encode(content: object) -> bytes:
    try:
        return _encoder.encode(content)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"events: found features that cannot be stored ({error})") from error


def encode_events(events: Sequence[Event]) -> bytes:
    """Return the bytes of a history; raise `UserError` if a feature is not a plain value."""
    return _encode(events)


def decode_events(content: Any, max_events: int, *, unreadable: Unreadable, since: int | None = None) -> list[Event]:
    """Return the last `max_events` of a history; one that was stored under larger limits may contain more.

    Events before `since` count as removed. Later events may be stored before earlier ones (`growing`).
    `unreadable` is called with the number of events that cannot be decoded; a damaged history counts as one.
    """
    events = younger(_all_events(content, unreadable)[-max_events:], since)
    return _bounded(events) if len(content) > MAX_HISTORY_BYTES else events


def _all_events(content: Any, unreadable: Unreadable) -> list[Event]:
    try:
        events = _events.decode(content)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        events, lost = _readable(content)
        unreadable(lost)
        log.warning("events: %d stored events of a user cannot be read and count as missing", lost)
    # Others are sorted already.
    if content[:1] == GROWING:
        events.sort(key=_time)
    return events


def has_older(content: Any, since: int) -> bool:
    """Return True if a history has an event before the second `since`."""
    events = [] if content is None else _all_events(content, ignore)
    return bool(events) and events[0].timestamp < since


def _readable(content: Any) -> tuple[list[Event], int]:
    try:
        stored = msgspec.msgpack.decode(content, type=list[Any])
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        return [], 1
    events = []
    for one in stored:
        try:
            events.append(msgspec.convert(one, Event))
        except msgspec.ValidationError:
            continue
    return events, len(stored) - len(events)


def encode_profile(profile: Mapping[str, Any]) -> bytes:
    """Return the bytes of profile features."""
    return _encoder.encode(profile)


def decode_profile(content: Any, *, unreadable: Unreadable) -> dict[str, Any]:
    """Return profile features from their bytes, none if they cannot be decoded."""
    try:
        features: dict[str, Any] = _profile.decode(content)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        unreadable(1)
        return {}
    return features
