"""A forgotten user leaves no bytes, does not come back, and nothing is lost of the others."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from asking import call, living, settings
from publishing import Published
from servers import Cluster, Server, needs_server

from recsys.cli.main import main
from recsys.core.errors import UserError
from recsys.core.suppression import SuppressionList, hash_of
from recsys.serving import forgetting
from recsys.serving.events import Event, EventStore, Restored, SQLiteEvents, UserId, open_store
from recsys.serving.events.byte_search import count, count_in_file
from recsys.serving.forgetting import forget, keep_out, remove_expired
from recsys.serving.http.app import App
from recsys.serving.impressions import open_impressions
from recsys.serving.impressions.records import Impression, OpenBatch, encode_batch

ADMIN = {"authorization": "Bearer secret-of-the-tests"}
# Long and short ids, of both types, with every kind of character.
GONE: tuple[UserId, ...] = ("customer-4711", "ü" * 3, 'quote"d\\', "x", 5, 0, 123_456_789_012, -70_000, "L" * 5000)


def fill(store: EventStore, users: tuple[UserId, ...] = (*GONE, "stays", "customer-47110", 6)) -> None:
    for user in users:
        store.append([(user, Event(f"item-{n}", n, {"text": f"of {user}"[:200]})) for n in range(30)])
        store.restore([Restored(user, [Event("old", 1)], {"country": f"land of {user}"[:100]})], "folder", done=1)


def everything(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def write_samples(folder: Path, users: tuple[UserId | None, ...]) -> None:
    folder.mkdir(parents=True)
    lines = [
        msgspec.json.encode({"at": 1.0, "asked": {"user_id": user, "k": 1}, "history": [], "profile": {}})
        for user in users
    ]
    (folder / "1-1.jsonl").write_bytes(b"".join(line + b"\n" for line in lines) + b'{"at":1,"asked":{"user_id":"cust')


@pytest.fixture(params=["sqlite", pytest.param("valkey", marks=needs_server)])
def place(request: pytest.FixtureRequest, fast_folder: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(fast_folder / "events.sqlite")
        return
    if request.param == "cluster":
        cluster = Cluster(fast_folder)
        yield cluster.url
        cluster.kill()
        return
    server = Server(fast_folder, "--appendonly", "yes", "--appendfsync", "always", "--save", "3600 1000")
    yield server.url
    server.kill()


@pytest.fixture
def fast_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Paths of sockets are short.
    return tmp_path_factory.mktemp("f")


@pytest.mark.parametrize(
    "place", ["sqlite", *(pytest.param(name, marks=needs_server) for name in ("valkey", "cluster"))], indirect=True
)
def test_no_byte_remains_and_nobody_comes_back(place: str, fast_folder: Path, tmp_path: Path) -> None:
    store, listed = open_store(place), SuppressionList(tmp_path / "state/suppressed")
    fill(store)
    write_samples(tmp_path / "samples/host", (*GONE, "stays", None, "customer-47110"))
    assert b"customer-4711" in everything(fast_folder)
    before = {user: store.history(user) for user in ("stays", "customer-47110", 6)}
    found = forget(GONE, suppressed=listed, store=store, samples=tmp_path / "samples")
    assert found[:5] == (len(GONE), len(GONE), len(GONE), len(GONE), len(GONE))
    assert found.found == 0
    assert len(found.searched) >= 3
    for user in GONE:
        assert store.history(user) == []
        assert store.profile(user) == {}
    assert {user: store.history(user) for user in before} == before
    left = everything(fast_folder) + everything(tmp_path)
    # What is left of the long name is the name of another user.
    assert not re.search(rb"customer-4711(?!0)", left)
    for word in ("L" * 50, "ü" * 3, "of customer-4711 ", "land of 5", '"user_id":5,', '"user_id":"x"'):
        assert not re.search(rf"{re.escape(word)}(?![0-9])".encode(), left), word
    # Neither the same events, nor new ones, nor a backfill bring anybody back; digits are one user in both types.
    fill(store)
    store.append([("5", Event("new", 100)), (0, Event("new", 100)), ("stays", Event("new", 100))])
    assert [store.history(user) for user in (*GONE, "5", "0")] == [[]] * (len(GONE) + 2)
    assert store.append([("x", Event("new", 101)), ("stays", Event("new", 101))]) == ["dropped", "stored"]
    assert store.suppressed([*GONE, "5", "stays"]) == {*GONE, "5"}
    again = forget(GONE, suppressed=listed, store=store, samples=tmp_path / "samples")
    assert again == (len(GONE), 0, 0, 0, 0, again.searched)
    assert again.found == 0
    store.close()


def test_a_store_of_an_earlier_copy_learns_whom_to_forget(place: str) -> None:
    store = open_store(place)
    fill(store)
    assert store.suppress([hash_of("customer-4711"), hash_of(6), hash_of("nobody")]) == 2
    assert store.suppress([hash_of("customer-4711"), hash_of(6), hash_of("nobody")]) == 0
    assert [bool(store.history(user)) for user in ("customer-4711", 6, "stays")] == [False, False, True]
    assert store.append([("nobody", Event("a", 1))]) == ["dropped"]
    store.close()


@needs_server
def test_an_interrupted_suppression_is_continued(fast_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(fast_folder, "--appendonly", "yes", "--appendfsync", "always")
    store = open_store(server.url)
    fill(store)
    with monkeypatch.context() as patch:
        patch.setattr(store, "forget", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.suppress([hash_of("customer-4711")])
    assert store.suppress([hash_of("customer-4711")]) == 1
    assert store.history("customer-4711") == []
    assert store.suppress([hash_of("customer-4711")]) == 0
    store.close()
    server.kill()


def test_old_events_are_neither_answered_nor_kept(place: str, fast_folder: Path, tmp_path: Path) -> None:
    now = time.time()
    young, old = int(now) - 100, int(now) - 3 * 86_400
    whole = open_store(place)
    whole.append([("a", Event("young", young)), ("a", Event("oldest-item", old)), ("b", Event("oldest-item", old))])
    store = open_store(place, max_age_days=2)
    assert store.histories(["a", "b"]) == [[Event("young", young)], []]
    assert store.append([("a", Event("late", old)), ("c", Event("late", old))]) == ["dropped", "dropped"]
    store.restore([Restored("d", [Event("late", old), Event("young", young)], {})], "folder", done=1)
    assert whole.history("d") == [Event("young", young)]
    write_samples(tmp_path / "samples", ("a",))
    (tmp_path / f"samples/{time.time_ns()}-2.jsonl").write_bytes(b"")
    remove_expired(store, tmp_path / "samples", days=2)
    assert whole.histories(["a", "b"]) == [[Event("young", young)], []]
    assert whole.users("", 10) == ["a", "d"]
    assert [path.name[-7:] for path in (tmp_path / "samples").glob("*.jsonl")] == ["2.jsonl"]
    if "://" not in place:
        assert b"oldest-item" not in everything(fast_folder)
    store.expire()
    store.close()
    whole.close()


def test_what_is_left_is_found_and_removed(tmp_path: Path) -> None:
    """A file whose deleted rows were not overwritten, as other programs leave them."""
    store = SQLiteEvents(tmp_path / "events.sqlite")
    fill(store)
    careless = sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)
    careless.execute("PRAGMA secure_delete = OFF")
    careless.execute("DELETE FROM histories WHERE user_id = 'customer-4711'")
    careless.close()
    listed = SuppressionList(tmp_path / "suppressed")
    assert b"of customer-4711" in everything(tmp_path)
    found = forget(["customer-4711"], suppressed=listed, store=store, samples=tmp_path / "none")
    assert (found.histories, found.found) == (0, 0)
    store.close()
    assert b"of customer-4711\xa0" not in everything(tmp_path)


def test_impressions_are_forgotten(place: str, fast_folder: Path, tmp_path: Path) -> None:
    store, impressions = open_store(place), open_impressions(place, keep_hours=1)
    old, batch = OpenBatch(10), OpenBatch(10)
    for user in (*GONE, "5", "stays"):
        batch.add(Impression(int(time.time()), user, "v", "g", ["i"]))
        old.add(Impression(1, user, "v", "g", ["i"]))
    # The first one is removed by age, which overwrites no bytes.
    impressions.add(old.name, encode_batch(old.batch), 1)
    impressions.add(batch.name, encode_batch(batch.batch), time.time())
    # A server that keeps impressions for longer than whoever forgets knows.
    server, earlier = open_impressions(place, keep_hours=9), OpenBatch(1)
    earlier.add(Impression(2, "customer-4711", "v", "g", ["i"]))
    server.add(earlier.name, encode_batch(earlier.batch), time.time() - 7200)
    server.close()
    listed = SuppressionList(tmp_path / "suppressed")
    found = forget(GONE, suppressed=listed, store=store, samples=tmp_path / "samples", impressions=impressions)
    assert found.found == 0
    users = {one.user_id for _, held in impressions.batches(0) for one in held.impressions}
    assert users == {None, "stays"}
    left = everything(fast_folder)
    for word in ("customer-4711", "L" * 50, "ü" * 3):
        assert word.encode() not in left, word
    impressions.close()
    store.close()


@pytest.mark.parametrize("is_suppressed", [False, True])
def test_listed_users_have_impressions_and_samples_alone(place: str, tmp_path: Path, is_suppressed: bool) -> None:
    """The event store is new, or a backfill or a start that was killed told it already whom it has to forget."""
    store, impressions, hashes = open_store(place), open_impressions(place), [hash_of("gone"), hash_of("nobody")]
    batch = OpenBatch(9)
    for user in ("gone", "stays"):
        batch.add(Impression(int(time.time()), user, "v", "g", ["i"]))
    impressions.add(batch.name, encode_batch(batch.batch), time.time())
    write_samples(tmp_path / "samples", ("gone", "stays"))
    if is_suppressed:
        store.suppress(hashes)
    keep_out(store, hashes, samples=tmp_path / "samples", impressions=impressions)
    assert {one.user_id for _, held in impressions.batches(0) for one in held.impressions} == {None, "stays"}
    assert b"gone" not in everything(tmp_path)
    assert b"stays" in everything(tmp_path)
    impressions.close()
    store.close()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_an_earlier_server_or_copy_recorded_is_removed(published: Published, tmp_path: Path, share: float) -> None:
    """The present server may record nothing, keep less, or learn only at its start who was forgotten."""
    events = tmp_path / "events.sqlite"
    store, impressions = open_store(str(events)), open_impressions(str(events))
    fill(store, ("was-forgotten", "stays"))
    for at, item in ((time.time(), "young"), (time.time() - 2 * 86_400, "two-days-old")):
        batch = OpenBatch(9)
        for user in ("was-forgotten", "is-forgotten", "stays"):
            batch.add(Impression(int(at), user, "v", "g", [item]))
        impressions.add(batch.name, encode_batch(batch.batch), at)
    impressions.close()
    store.close()
    write_samples(tmp_path / "samples/host", ("was-forgotten", "stays"))
    SuppressionList(tmp_path / "suppressed").add([hash_of("was-forgotten")])

    async def use(app: App) -> None:
        assert (await call(app, "POST", "/v1/admin/forget", {"user_ids": ["is-forgotten"]}, ADMIN)).status == 200
        while b"two-days-old" in everything(tmp_path):
            await asyncio.sleep(0.01)

    living(settings(published, events, impressions_share=share, max_age_days=1), use)
    left = everything(tmp_path)
    assert b"-forgotten" not in left
    assert b"stays" in left


def test_a_list_that_cannot_be_written_stops_no_server(tmp_path: Path) -> None:
    store = SQLiteEvents(tmp_path / "events.sqlite")
    fill(store)
    (tmp_path / "file").touch()
    listed = SuppressionList(tmp_path / "file/suppressed")
    found = forget(["customer-4711"], suppressed=listed, store=store, samples=tmp_path / "none")
    assert (found.listed, found.histories, found.found) == (None, 1, 0)
    assert store.append([("customer-4711", Event("new", 1))]) == ["dropped"]
    store.close()


@pytest.mark.parametrize("num", [1, 40])
def test_bytes_are_counted_across_the_parts_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num: int
) -> None:
    monkeypatch.setattr("recsys.serving.events.byte_search._CHUNK_BYTES", 1000)
    patterns = [f"pattern-{n}-{'x' * n}!".encode() for n in range(num)]
    content = b"".join(bytes(200 + n) + patterns[n % num] for n in range(50))
    (tmp_path / "file").write_bytes(content)
    assert count_in_file(tmp_path / "file", patterns) == count(content, patterns) == 50
    assert count_in_file(tmp_path / "file", [b"absent"]) == count_in_file(tmp_path / "nothing", patterns) == 0


def test_the_list_has_no_names_and_is_private(tmp_path: Path) -> None:
    listed = SuppressionList(tmp_path / "state" / "suppressed")
    assert listed.lines() == []
    assert listed.add([hash_of("customer-4711"), hash_of(5)]) == 2
    assert listed.add([hash_of("5"), hash_of("other")]) == 1
    assert listed.lines() == [hash_of("customer-4711"), hash_of(5), hash_of("other")]
    assert b"customer" not in everything(tmp_path)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").rglob("*")}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    listed.path.write_text("customer-4711\n")
    with pytest.raises(UserError, match="suppressed: line 1: found 'customer-4711', expected a hash"):
        listed.lines()


def test_a_running_server_forgets(published: Published, stored: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"samples_share": 1.0, "read_token": "token-of-readers-1"}
    user = "forgetful-user"

    async def use(app: App) -> None:
        event = {"user_id": user, "item_id": "i001"}
        assert (await call(app, "POST", "/v1/events", event)).body["stored"] == 1
        for name in (user, "other"):
            ask = {"user_id": name, "k": 2}
            assert (await call(app, "POST", "/v1/retrieve", ask, ADMIN)).status == 200
        for wrong in ({}, {"user_ids": []}, {"user_ids": [""]}, {"user_ids": [1.5]}, {"user_ids": [2**64]}):
            assert (await call(app, "POST", "/v1/admin/forget", wrong, ADMIN)).status == 400, wrong
        for headers in ({}, {"authorization": "Bearer token-of-readers-1"}):
            assert (await call(app, "POST", "/v1/admin/forget", {"user_ids": [user]}, headers)).status == 401
        for histories in (1, 0):
            found = await call(app, "POST", "/v1/admin/forget", {"user_ids": [user]}, ADMIN)
            assert found.status == 200, found
            assert (found.body["users"], found.body["histories"]) == (1, histories)
            assert not any(one["found"] for one in found.body["searched"])
            places = {Path(one["place"]).name for one in found.body["searched"]}
            assert places >= {stored.name, f"{stored.name}-wal", f"{stored.stem}.impressions.sqlite"}
        assert (await call(app, "POST", "/v1/events", event)).body["dropped"] == 1
        answer = await call(app, "POST", "/v1/retrieve", {"user_id": user, "k": 2}, ADMIN)
        assert (answer.status, answer.body["history_length"]) == (200, 0)

    with caplog.at_level("DEBUG"):
        living(settings(published, stored, **options), use)
    assert user.encode() not in everything(stored.parent)
    assert b'"other"' in everything(stored.parent / "samples")
    assert user not in caplog.text
    assert hash_of(user)[:12] in caplog.text


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["forget", "5"])
    assert "store: releases: no such folder" in capsys.readouterr().err
    (tmp_path / "releases").mkdir()
    # Without a store the user is listed, for the store that will be made.
    main(["forget", "early"])
    assert "1 new on the list" in capsys.readouterr().out
    store = SQLiteEvents(tmp_path / "releases/state/events.sqlite")
    store.suppress(SuppressionList("releases/state/suppressed").lines())
    fill(store, (*GONE, "early", "stays"))
    assert store.history("early") == []
    (tmp_path / "users.txt").write_text("user_id\ncustomer-4711\nnobody\n")
    main(["forget", "users=users.txt"])
    main(["forget", "5", "ü" * 3, "json=true"])
    said = capsys.readouterr().out
    assert "forgot 2 users (2 new on the list): removed 1 histories, 1 profiles, 0 request samples" in said
    assert "searched releases/state/events.sqlite-wal (0 bytes): nothing found" in said
    (row,) = json.loads(said[said.index("[\n") :])
    assert (row["histories"], row["found"], row["server"]) == (2, 0, None)
    assert [bool(store.history(user)) for user in ("customer-4711", 5, "ü" * 3, "stays")] == [False, False, False, True]
    store.close()
    for words in (["forget"], ["forget", "5", "users=users.txt"], ["forget", "users=none.txt"]):
        with pytest.raises(SystemExit):
            main(words)
        assert capsys.readouterr().err.startswith("error: user")


@pytest.mark.parametrize(
    "step", ["SQLiteEvents.forget", "SQLiteEvents.search", "forgetting.remove_users", "forgetting.search_file"]
)
def test_an_interrupted_erasure_is_finished_by_the_next(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, listed = SQLiteEvents(tmp_path / "events.sqlite"), SuppressionList(tmp_path / "suppressed")
    fill(store, ("customer-4711", "stays"))
    write_samples(tmp_path / "samples", ("customer-4711", "stays"))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    owner, _, name = step.partition(".")
    with monkeypatch.context() as patched:
        patched.setattr(SQLiteEvents if owner == "SQLiteEvents" else forgetting, name, stop)
        with pytest.raises(KeyboardInterrupt):
            forget(["customer-4711"], suppressed=listed, store=store, samples=tmp_path)
    # From the first step on the user is kept out of a store that reads the list.
    assert listed.lines() == [hash_of("customer-4711")]
    assert forget(["customer-4711"], suppressed=listed, store=store, samples=tmp_path).found == 0
    store.close()
    assert b"customer-4711" not in everything(tmp_path)


def test_files_of_a_server_are_private(published: Published, tmp_path: Path) -> None:
    events = tmp_path / "state/events.sqlite"

    async def use(app: App) -> None:
        assert (await call(app, "POST", "/v1/events", {"user_id": "a", "item_id": "i001"})).status == 200
        assert (await call(app, "POST", "/v1/retrieve", {"user_id": "a", "k": 1})).status == 200
        for name, body in (("takedown", {"item_ids": ["i001"]}), ("forget", {"user_ids": ["b"]})):
            assert (await call(app, "POST", f"/v1/admin/{name}", body, ADMIN)).status == 200
        canary = {"version": published.versions[0], "share": 0.5}
        assert (await call(app, "POST", "/v1/admin/canary", canary, ADMIN)).status == 200

    old = os.umask(0o022)
    try:
        living(settings(published, events, samples_share=1.0), use)
    finally:
        os.umask(old)
    modes: dict[str, Any] = {p.name: stat.S_IMODE(p.stat().st_mode) for p in [events.parent, *events.parent.rglob("*")]}
    assert {"events.sqlite", "changes.journal", "canary.json", "suppressed", "samples"} <= modes.keys()
    assert {name for name, mode in modes.items() if mode not in (0o600, 0o700)} == set()
