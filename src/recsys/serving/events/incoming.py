"""Checks posted events and converts them to stored ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from recsys.core.errors import UserError, nearest
from recsys.release.runtime.feature_values import ValueType
from recsys.release.runtime.timestamps import to_seconds
from recsys.serving.events.event_store import Event, UserId

# Limits of one event: its size as JSON, and the time ahead of the clock of the server.
MAX_BYTES, MAX_AHEAD_SECONDS = 4096, 300
_OWN = ("user_id", "item_id", "timestamp")
_json = msgspec.json.Encoder()


def parse_events(
    posted: Any, features: Mapping[str, ValueType], *, now: float, arrived: float | None = None
) -> list[tuple[UserId, Event]]:
    """Return the events of a request: one or a list of `{user_id, item_id, timestamp?, feature: value, ...}`.

    `features` are those that the release reads; `arrived`, or else `now`, is the time of events without a timestamp.
    Errors name the field (`[3].timestamp` in a list).
    """
    arrived = now if arrived is None else arrived
    events = (
        [(event, f"[{number}]") for number, event in enumerate(posted)] if isinstance(posted, list) else [(posted, "")]
    )
    try:
        return [_parse(event, features, now=now, arrived=arrived, place=place) for event, place in events]
    except RecursionError as error:
        # A value that could just be decoded may be too deep to be shown.
        raise UserError("events: found values nested too deeply, expected numbers, strings or lists of them") from error


def _parse(
    event: Any, features: Mapping[str, ValueType], *, now: float, arrived: float, place: str
) -> tuple[UserId, Event]:
    if not isinstance(event, Mapping):
        raise UserError(f"{place or 'events'}: found {short(event)}, expected an event {{user_id, item_id, ...}}")
    prefix = f"{place}." if place else ""
    ids = [_id(event, name, prefix) for name in ("user_id", "item_id")]
    given = event.get("timestamp")
    seconds = int(arrived) if given is None else to_seconds(given, f"{prefix}timestamp")
    if seconds < 0:
        raise UserError(f"{prefix}timestamp: found {short(given)}, expected seconds from 0 (1970)")
    if seconds > now + MAX_AHEAD_SECONDS:
        # Such events would stay the last ones of their user, and push out all others.
        raise UserError(
            f"{prefix}timestamp: found {short(given)}, which is {seconds - int(now)} s ahead of the server's clock; "
            f"expected at most {MAX_AHEAD_SECONDS} s"
        )
    kept = {}
    for name, value in event.items():
        if name in _OWN:
            continue
        if name not in features:
            raise UserError(f"{prefix}{_shown(name)}: no such feature of events{nearest(name, [*_OWN, *features])}")
        kept[name] = _value(value, f"{prefix}{name}")
        if not features[name].holds(kept[name]):
            raise UserError(f"{prefix}{name}: found {short(value)}, expected {features[name].expected}")
    if (size := len(_json.encode(event))) > MAX_BYTES:
        raise UserError(f"{place or 'events'}: found an event of {size} bytes, expected at most {MAX_BYTES}")
    return ids[0], Event(ids[1], seconds, kept)


def _id(event: Mapping[str, Any], name: str, prefix: str) -> int | str:
    if name not in event:
        raise UserError(f"{prefix}{name}: missing, expected an integer or a string")
    value = event[name]
    if is_id(value):
        return value  # type: ignore[no-any-return]  # checked
    raise UserError(f"{prefix}{name}: found {short(value)}, expected an integer of 64 bits or a string")


def is_id(value: Any) -> bool:
    """Return True if a value can be the id of a user or an item."""
    # Control characters take six bytes in JSON, so excluding them in a search could exceed the limit of its body.
    if isinstance(value, str):
        return bool(value) and is_text(value) and min(value) >= " "
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def check_user(value: Any, place: str) -> UserId:
    """Return an id that a store can hold; a data folder may have ids that events may not have.

    Raises:
        UserError: If it is something else.
    """
    if is_id(value) or (isinstance(value, str) and value and is_text(value)):
        return value  # type: ignore[no-any-return]  # checked
    raise UserError(f"{place}: found {short(value)}, expected an integer of 64 bits or a string")


def _value(value: Any, place: str) -> Any:
    if isinstance(value, list):
        if any(not _is_plain(entry) for entry in value):
            raise UserError(f"{place}: found {short(value)}, expected a list of numbers or strings")
        return value
    if not _is_plain(value):
        raise UserError(f"{place}: found {short(value)}, expected a number, a string or a list of them")
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return is_text(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, float)


def is_text(value: str) -> bool:
    """Return True if a text can be encoded as UTF-8."""
    # JSON allows half of a surrogate pair, but it cannot be encoded as UTF-8.
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


def _shown(name: str) -> str:
    return name if is_text(name) and len(name) <= 60 else short(name)


def short(value: Any) -> str:
    """Return a value for a message, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
