"""Stored form of a history that grows at its end, so that an event costs its own bytes. Imports no torch.

    0xdd, number of events in 4 bytes, events in the order of arrival

That is a list in MessagePack, which earlier versions read, too. Events that a full history no longer has stay in it
until it has an eighth more than it may have; then it is written anew, as is one in another form.
"""

from __future__ import annotations

from collections.abc import Sequence

from recsys.serving.events.event_store import MAX_HISTORY_BYTES, Event
from recsys.serving.events.merging import GROWING, encode_events
from recsys.serving.valkey_edits import Edit

# Fewest events, and bytes, that a history may have beyond its limits.
_SPARE_EVENTS, _SPARE_BYTES = 16, MAX_HISTORY_BYTES // 4


def encode_growing(events: Sequence[Event]) -> bytes:
    """Return a history that later events can be appended to."""
    return _header(len(events)) + b"".join(map(_encode_one, events))


def edit_of(
    key: str,
    content: bytes | None,
    held: Sequence[Event],
    kept: Sequence[Event],
    *,
    max_events: int,
    is_whole: bool,
    member: str,
) -> Edit | None:
    """Return the cheapest edit that makes a stored history `kept`; None if it is that already.

    Args:
        key: key of the history.
        content: what is stored; None if nothing is.
        held: events that `content` is read as.
        kept: events of the history after the edit, with the objects of `held`.
        max_events: number of events of a history.
        is_whole: whether all of `content` could be read.
        member: see `Edit`.
    """
    if kept == held and is_whole:
        return None
    if not kept:
        return Edit(key, content, "delete", member=member)
    if content is not None and content[:1] == GROWING and is_whole:
        number = int.from_bytes(content[1:5], "big")
        known = set(map(id, held))
        new = [event for event in kept if id(event) not in known]
        end = b"".join(map(_encode_one, new))
        # An event before all others would come after those that are stored and no longer read.
        is_in_place = id(kept[0]) in known or number == len(held)
        spare = max(_SPARE_EVENTS, max_events // 8)
        is_short = (
            number + len(new) <= max_events + spare and len(content) + len(end) <= MAX_HISTORY_BYTES + _SPARE_BYTES
        )
        if new and is_in_place and is_short:
            return Edit(key, content, "append", _header(number + len(new)) + end, member)
    return Edit(key, content, "set", encode_growing(kept), member)


def _header(number: int) -> bytes:
    return GROWING + number.to_bytes(4, "big")


def _encode_one(event: Event) -> bytes:
    return encode_events([event])[1:]
