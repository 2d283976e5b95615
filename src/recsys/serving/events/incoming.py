"""Checks posted events and converts them to stored ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from recsys.core.errors import UserError, nearest
from recsys.release.runtime.timestamps import to_seconds
from recsys.serving.events.event_store import Event, UserId

_OWN = ("user_id", "item_id", "timestamp")


def parse_events(posted: Any, features: Collection[str], *, now: int) -> list[tuple[UserId, Event]]:
    """Return the events of a request: one or a list of `{user_id, item_id, timestamp?, feature: value, ...}`.

    `now` is the time of events without a timestamp. Errors name the field (`[3].timestamp` in a list).
    """
    if isinstance(posted, list):
        return [_parse(event, features, now=now, place=f"[{number}]") for number, event in enumerate(posted)]
    return [_parse(posted, features, now=now, place="")]


def _parse(event: Any, features: Collection[str], *, now: int, place: str) -> tuple[UserId, Event]:
    if not isinstance(event, Mapping):
        raise UserError(f"{place or 'events'}: found {_short(event)}, expected an event {{user_id, item_id, ...}}")
    prefix = f"{place}." if place else ""
    ids = [_id(event, name, prefix) for name in ("user_id", "item_id")]
    given = event.get("timestamp")
    seconds = now if given is None else to_seconds(given, f"{prefix}timestamp")
    if seconds < 0:
        raise UserError(f"{prefix}timestamp: found {_short(given)}, expected seconds from 0 (1970)")
    kept = {}
    for name, value in event.items():
        if name in _OWN:
            continue
        if name not in features:
            raise UserError(f"{prefix}{name}: no such feature of events{nearest(name, [*_OWN, *features])}")
        kept[name] = _value(value, f"{prefix}{name}")
    return ids[0], Event(ids[1], seconds, kept)


def _id(event: Mapping[str, Any], name: str, prefix: str) -> int | str:
    if name not in event:
        raise UserError(f"{prefix}{name}: missing, expected an integer or a string")
    value = event[name]
    if isinstance(value, str) and _is_text(value):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return value
    raise UserError(f"{prefix}{name}: found {_short(value)}, expected an integer of 64 bits or a string")


def _value(value: Any, place: str) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if any(not _is_plain(entry) for entry in value):
            raise UserError(f"{place}: found {_short(value)}, expected a list of numbers or strings")
        return list(value)
    if not _is_plain(value):
        raise UserError(f"{place}: found {_short(value)}, expected a number, a string or a list of them")
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return _is_text(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, float)


def _is_text(value: str) -> bool:
    # JSON allows half of a surrogate pair, but it cannot be encoded as UTF-8.
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
