"""Both stores behave as one simple model, and as the protocol says."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import needs_server

from recsys.core.errors import UserError
from recsys.serving.events import Event, EventStore, Restored, SQLiteEvents, StoreError, UserId, open_store
from recsys.serving.events.merging import encode_events

_numbers = itertools.count()
Open = Callable[[int], EventStore]


@pytest.fixture(params=["sqlite", *(pytest.param(name, marks=needs_server) for name in ("server", "cluster"))])
def open_new(request: pytest.FixtureRequest, fast_folder: Path) -> Iterator[Open]:
    """Opens empty stores of one kind, with a limit of events."""
    opened: list[EventStore] = []

    def open_empty(max_events: int) -> EventStore:
        if request.param == "sqlite":
            opened.append(open_store(str(fast_folder / f"{next(_numbers)}.db"), max_events))
            return opened[-1]
        from recsys.serving.events.valkey import ValkeyEvents

        if not opened:
            opened.append(ValkeyEvents(request.getfixturevalue(request.param).url))
        # A client of a cluster takes long to open.
        store: Any = opened[0]
        store.max_events, store._keys.prefix = max_events, f"test{next(_numbers)}"
        store._prefix = store._keys.prefix
        return store

    yield open_empty
    for store in opened:
        store.close()


class Model:
    """Reference implementation, slow and simple: sorted rows (time, rank, event) of each user."""

    def __init__(self, max_events: int) -> None:
        self.max_events = max_events
        self.rows: dict[tuple[type, UserId], list[tuple[int, int, Event]]] = {}
        self.forgotten: set[str] = set()
        self.clock = 0

    def append(self, events: list[tuple[UserId, Event]]) -> None:
        events = [(user_id, event) for user_id, event in events if str(user_id) not in self.forgotten]
        for user_id, event in events:
            rows = self.rows.setdefault((type(user_id), user_id), [])
            if not any(_same(row[2], event) for row in rows):
                self.clock += 1
                rows.append((event.timestamp, self.clock, event))
        for key in {(type(user_id), user_id) for user_id, _ in events}:
            self._cut(key)

    def restore(self, user_id: UserId, events: list[Event]) -> None:
        key = (type(user_id), user_id)
        if str(user_id) in self.forgotten:
            return
        recent = events[-self.max_events :]
        rest = list(self.rows.get(key, []))
        for event in recent:
            match = next((row for row in rest if _same(row[2], event)), None)
            if match is not None:
                rest.remove(match)
        # Restored events come before other events of the same second.
        first = min((rank for _, rank, _ in rest), default=0) - len(recent)
        self.rows[key] = rest + [(event.timestamp, first + n, event) for n, event in enumerate(recent)]
        self._cut(key)

    def forget(self, user_id: UserId) -> None:
        self.forgotten.add(str(user_id))
        self.rows = {key: rows for key, rows in self.rows.items() if str(key[1]) != str(user_id)}

    def history(self, user_id: UserId) -> list[Event]:
        return [event for _, _, event in self.rows.get((type(user_id), user_id), [])]

    def _cut(self, key: tuple[type, UserId]) -> None:
        self.rows[key] = sorted(self.rows[key], key=lambda row: row[:2])[-self.max_events :]


def _same(one: Event, other: Event) -> bool:
    ids = type(one.item_id) is type(other.item_id) and one.item_id == other.item_id
    return ids and one.timestamp == other.timestamp


USERS: tuple[UserId, ...] = (5, "5", -1, "ü\0'", "")
users = st.sampled_from(USERS)
features = st.dictionaries(
    st.sampled_from(["rating", "device"]), st.sampled_from([None, True, 4.5, 2**63 - 1, "phone", ["a", "b"], []])
)
# Few items and times, so that repeats, ties and late arrivals are the rule.
events = st.builds(Event, st.sampled_from([1, "1", 2, 3, -(2**63)]), st.integers(0, 6), features)
ordered = st.lists(events, max_size=8).map(lambda found: sorted(found, key=lambda event: event.timestamp))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(st.tuples(users, events), max_size=6)),
        st.tuples(st.just("restore"), st.dictionaries(users, ordered, max_size=3)),
        st.tuples(st.just("forget"), users),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(max_events=st.sampled_from([1, 3, 50]), steps=steps)
def test_a_store_behaves_like_the_reference(open_new: Open, max_events: int, steps: list[tuple[str, Any]]) -> None:
    store, model = open_new(max_events), Model(max_events)
    for number, (name, argument) in enumerate(steps):
        if name == "append":
            store.append(argument)
            model.append(argument)
        elif name == "forget":
            store.forget([argument])
            model.forget(argument)
        else:
            store.restore([Restored(user, found, {}) for user, found in argument.items()], "folder", done=number)
            for user, found in argument.items():
                model.restore(user, found)
            assert store.restored("folder") == number
        assert [_plain(store.history(user)) for user in USERS[:2]] == [
            _plain(model.history(user)) for user in USERS[:2]
        ]
    assert [_plain(found) for found in store.histories([*USERS, 5])] == [
        _plain(model.history(user)) for user in (*USERS, 5)
    ]


def _plain(history: list[Event]) -> list[tuple[Any, ...]]:
    # By `repr`, for 1 == True and 5 == 5.0.
    return [(repr(e.item_id), e.timestamp, sorted((k, repr(v)) for k, v in e.features.items())) for e in history]


def test_a_late_event_is_inserted_by_time_and_a_repeat_is_ignored(open_new: Open) -> None:
    store = open_new(3)
    assert store.append([(5, Event(1, 10)), (5, Event(2, 30))]) == ["stored", "stored"]
    assert store.append([(5, Event(3, 20, {"rating": 4.5}))]) == ["stored"]
    assert store.append([(5, Event(3, 20, {"rating": 1.0})), (5, Event(2, 30))]) == ["repeated", "repeated"]
    assert store.history(5) == [Event(1, 10), Event(3, 20, {"rating": 4.5}), Event(2, 30)]
    # Full: a later one pushes the oldest out, an older one finds no place.
    late = [(5, Event(4, 40)), (5, Event(9, 5)), (6, Event(4, 40)), (5, Event(4, 40))]
    assert store.append(late) == ["stored", "dropped", "stored", "repeated"]
    assert store.history(5) == [Event(3, 20, {"rating": 4.5}), Event(2, 30), Event(4, 40)]
    # Events of one second stand as they came.
    store.append([(5, Event(6, 40)), (5, Event(5, 40))])
    assert [event.item_id for event in store.history(5)] == [4, 6, 5]


def test_a_restored_history_keeps_repeats_and_precedes_newer_events(open_new: Open) -> None:
    store = open_new(10)
    store.append([(5, Event(7, 20)), (5, Event(2, 10))])
    folder = [Event(1, 10), Event(1, 10), Event(2, 10), Event(3, 20)]
    for _ in range(2):
        store.restore([Restored(5, folder, {"age": 30})], "folder", done=1)
        assert store.history(5) == [*folder, Event(7, 20)]
    assert store.profile(5) == {"age": 30}
    assert store.profile("5") == {}
    store.forget([5])
    assert store.history(5) == []
    assert store.profile(5) == {}
    assert store.restored("folder") == 1
    assert store.restored("other") == 0


def test_features_that_cannot_be_stored_fail_for_their_sender_alone(open_new: Open) -> None:
    store = open_new(10)
    for value in (object(), 2**64, "\ud800"):
        with pytest.raises(UserError, match="features that cannot be stored"):
            store.append([(5, Event(1, 1)), (5, Event(2, 2, {"rating": value}))])
    assert store.history(5) == []


def test_a_history_has_at_most_256_kb(open_new: Open) -> None:
    store = open_new(200)
    for number in range(100):
        assert store.append([(5, Event(number, number, {"text": "x" * 4000}))]) == ["stored"]
    found = store.history(5)
    assert [event.item_id for event in found] == list(range(100 - len(found), 100))
    assert 256 * 1024 - 4100 < len(encode_events(found)) <= 256 * 1024
    assert store.append([(5, Event(200, 1, {"text": "x" * 4000}))]) == ["dropped"]


def test_what_cannot_be_decoded_counts_as_missing(tmp_path: Path) -> None:
    lost: list[int] = []
    store = SQLiteEvents(tmp_path / "events.sqlite", 10, unreadable=lost.append)
    good = Event(1, 10)
    contents = {
        "bytes": b"\xff\x00",
        "nothing": b"",
        "text": "text",
        "nested": b"\x91" * 5000,
        "other": msgspec.msgpack.encode({"item_id": 1}),
        "events": msgspec.msgpack.encode(
            [good, [1], ["", 1, {}], [2**64 - 1, 1, {}], [1.5, 1, {}], [1, 2**60, {}], [1, "now", {}], 5, None]
        ),
    }
    with sqlite3.connect(tmp_path / "events.sqlite") as raw:
        raw.executemany("INSERT INTO histories VALUES (?, ?)", list(contents.items()))
        raw.execute("INSERT INTO profiles VALUES ('bytes', ?)", (b"\xff",))
    expected = [[good] if user == "events" else [] for user in contents]
    assert store.histories(list(contents)) == [store.history(user) for user in contents] == expected
    assert sum(lost) == 2 * (5 + 8)
    assert store.profile("bytes") == {}
    assert store.append([("bytes", good)]) == ["stored"]
    assert store.history("bytes") == [good]
    store.close()


def test_nothing_is_lost_between_threads(open_new: Open) -> None:
    store = open_new(1000)

    def write(thread: int) -> None:
        for number in range(25):
            event = Event(f"{thread}-{number}", number)
            store.append([(5, event), (thread, event)])
            assert event in store.history(thread)

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(100, 108)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = store.history(5)
    assert {event.item_id for event in found} == {f"{t}-{n}" for t in range(100, 108) for n in range(25)}
    assert [event.timestamp for event in found] == sorted(event.timestamp for event in found)
    assert len(found) == 200


def test_many_users_at_once(open_new: Open) -> None:
    store = open_new(5)
    # More than one statement of SQLite can name.
    number = 12_000 if store.is_embedded else 500
    store.append([(user, Event(user, 1)) for user in range(number)])
    wanted = [*range(number - 10, number + 10), *range(number - 100)]
    assert store.histories(wanted) == [[Event(user, 1)] if user < number else [] for user in wanted]
    assert store.histories([]) == []
    store.append([])


@pytest.mark.parametrize("place", ["s3://bucket/events", "http://127.0.0.1"])
def test_an_unknown_place_is_refused(place: str) -> None:
    with pytest.raises(UserError, match="no such store"):
        open_store(place)


@pytest.mark.parametrize("place", ["redis://a:secret@127.0.0.1:1/0", "redis://127.0.0.1:1/0?password=secret"])
def test_errors_have_no_password(place: str) -> None:
    with pytest.raises((UserError, StoreError), match=r"127\.0\.0\.1:1") as caught:
        open_store(place)
    assert "secret" not in str(caught.value)


def test_a_wrong_address_is_refused() -> None:
    with pytest.raises(UserError, match="expected the address of a server"):
        open_store("redis://127.0.0.1:port")
