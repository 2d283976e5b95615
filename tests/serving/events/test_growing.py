"""A stored history grows at its end: an event costs its own bytes, and is read as if all were written anew."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.serving.events.event_store import Event, ignore
from recsys.serving.events.growing import edit_of, encode_growing
from recsys.serving.events.merging import decode_events, encode_events, has_older, merge
from recsys.serving.valkey_edits import HEADER_BYTES, Edit

events = st.builds(Event, st.integers(0, 40), st.integers(0, 9), st.just({}))


def stored(content: bytes | None, edit: Edit | None) -> bytes | None:
    """What the script of the server makes of a content."""
    if edit is None:
        return content
    value = edit.value
    assert isinstance(value, bytes)
    if edit.action == "append":
        assert content is not None
        return value[:HEADER_BYTES] + content[HEADER_BYTES:] + value[HEADER_BYTES:]
    return None if edit.action == "delete" else value


def read(content: bytes | None, max_events: int, lost: list[int]) -> list[Event]:
    return [] if content is None else decode_events(content, max_events, unreadable=lost.append)


@settings(max_examples=60, deadline=None)
@given(
    writes=st.lists(st.lists(events, min_size=1, max_size=8), max_size=20),
    max_events=st.sampled_from([1, 4, 30]),
    first=st.sampled_from([None, encode_events([Event(1, 3), Event(1, 3)]), b"\x92\x93\x01\x03\x80\xff"]),
)
def test_appended_events_are_read_like_a_history_that_is_written_anew(
    writes: list[list[Event]], max_events: int, first: bytes | None
) -> None:
    content, model = first, read(first, max_events, [])
    for arrivals in writes:
        lost: list[int] = []
        held = read(content, max_events, lost)
        kept = merge(held, arrivals, max_events=max_events)
        edit = edit_of("key", content, held, kept, max_events=max_events, is_whole=not lost, member="")
        content, model = stored(content, edit), merge(model, arrivals, max_events=max_events)
        assert read(content, max_events, []) == model
        if content is not None and content[:1] == b"\xdd":
            # Any reader of MessagePack can read it, and it has few more events than a history may have.
            assert len(msgspec.msgpack.decode(content)) <= max_events + 16


def test_an_event_costs_its_own_bytes_in_time_and_late() -> None:
    held = [Event(item, 100 + item, {"device": "phone"}) for item in range(200)]
    content = encode_growing(held)
    assert len(content) > 3600
    sizes = []
    for timestamp in (1000, 150, 1, 1001):
        kept = merge(held, [Event(999, timestamp)], max_events=300)
        edit = edit_of("key", content, held, kept, max_events=300, is_whole=True, member="")
        assert edit is not None
        sizes.append(len(edit.value))
        content = stored(content, edit) or b""
        held = read(content, 300, [])
        assert held == kept
    assert max(sizes) < 30


def test_old_events_that_are_no_longer_read_are_still_found() -> None:
    content = encode_growing([Event(item, item) for item in range(10)])
    assert [event.timestamp for event in decode_events(content, 4, unreadable=ignore)] == [6, 7, 8, 9]
    assert has_older(content, 1)
    assert not has_older(content, 0)
    assert not has_older(None, 5)
