"""Acknowledged events survive killed writers and killed servers."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis
from killing import LIMIT, missing, numbered
from servers import Server, needs_server

from recsys.core.errors import UserError
from recsys.serving.events import Event, SQLiteEvents, StoreError, open_store

KILLS = 12


def killed(place: str) -> dict[str, int]:
    # In a process of its own, which has no threads when it forks.
    script = Path(__file__).parents[2] / "helpers/killing.py"
    done = subprocess.run([sys.executable, str(script), place, str(KILLS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_killed_writers_of_a_file_lose_nothing(fast_folder: Path) -> None:
    path = fast_folder / "events.db"
    found = killed(str(path))
    assert found["acknowledged"] >= KILLS
    assert found == {"kills": KILLS, "acknowledged": found["acknowledged"], "lost": 0, "torn": 0}
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@needs_server
def test_killed_writers_of_a_server_lose_nothing(server: Server) -> None:
    found = killed(server.url)
    assert found["acknowledged"] >= KILLS
    assert found == {"kills": KILLS, "acknowledged": found["acknowledged"], "lost": 0, "torn": 0}


@needs_server
def test_a_killed_server_loses_nothing(fast_folder: Path) -> None:
    server = Server(fast_folder)
    store = open_store(server.url, LIMIT)
    acknowledged: set[int] = set()
    attempted = failed = 0
    stop = threading.Event()

    def write() -> None:
        nonlocal attempted, failed
        while not stop.is_set():
            attempted += 1
            try:
                store.append(numbered("all/1", attempted - 1))
                acknowledged.add(attempted - 1)
            except StoreError:
                failed += 1
                time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(8):
            before = len(acknowledged)
            while len(acknowledged) < before + 5:
                time.sleep(0.005)
            time.sleep(random.uniform(0, 0.05))
            server.kill()
            server.start()
    finally:
        stop.set()
        writer.join()
        lost, torn = missing(store, "all/1", acknowledged, attempted)
        store.close()
        server.kill()
    assert len(acknowledged) >= 40
    assert (lost, torn) == (0, 0)


def test_the_check_finds_what_is_lost(fast_folder: Path) -> None:
    store = open_store(str(fast_folder / "events.db"), LIMIT)
    store.append(numbered("all/1", 2)[:-1])
    store.append(numbered("all/1", 3))
    assert missing(store, "all/1", {0, 3}, 4) == (1, 1)
    assert missing(store, "all/1", {2, 3}, 4) == (1, 1)
    store.close()


def test_a_write_to_a_file_waits_for_the_disk(fast_folder: Path) -> None:
    store = SQLiteEvents(fast_folder / "events.db")
    # 2: FULL, which in WAL mode calls fsync at every commit.
    assert store._file.writer.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._file.writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()


def test_a_locked_or_closed_file_is_unavailable(fast_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.serving.events.sqlite_connections._TIMEOUT_SECONDS", 0.01)
    path = fast_folder / "events.db"
    store = SQLiteEvents(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        store.append([(5, Event(1, 1))])
    other.execute("ROLLBACK")
    other.close()
    store.append([(5, Event(2, 2))])
    assert store.history(5) == [Event(2, 2)]
    store.close()
    with pytest.raises(StoreError):
        store.append([(5, Event(3, 3))])


def test_a_file_of_something_else_is_refused(fast_folder: Path) -> None:
    text, other, later = (fast_folder / name for name in ("text.db", "other.db", "later.db"))
    text.write_text("no database " * 1000)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE notes (note)")
    connection.close()
    SQLiteEvents(later).close()
    with sqlite3.connect(later) as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    for path, message in (
        (text, "not a database"),
        (other, "of another program"),
        (later, "format 9, expected 1"),
        (fast_folder, "unable to open"),
    ):
        with pytest.raises(UserError, match=message):
            SQLiteEvents(path)
    with pytest.raises(UserError, match="max_events: found 0"):
        SQLiteEvents(fast_folder / "events.db", 0)


@needs_server
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("--appendonly", "no"), "found appendonly no, appendfsync everysec; expected appendonly yes"),
        (("--appendonly", "yes"), "found appendfsync everysec; expected appendfsync always"),
        (
            ("--appendonly", "yes", "--appendfsync", "always", "--no-appendfsync-on-rewrite", "yes"),
            "found no-appendfsync-on-rewrite yes",
        ),
        (
            [
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
                "--maxmemory",
                "100mb",
                "--maxmemory-policy",
                "allkeys-lru",
            ],
            "found maxmemory-policy allkeys-lru; expected noeviction",
        ),
        (
            ("--appendonly", "yes", "--appendfsync", "always", "--rename-command", "CONFIG", ""),
            "durability is unknown",
        ),
    ],
)
def test_a_server_that_may_lose_events_is_refused(fast_folder: Path, settings: list[str], message: str) -> None:
    server = Server(fast_folder, *settings)
    try:
        with pytest.raises(UserError, match=message):
            open_store(server.url)
    finally:
        server.kill()


@needs_server
def test_a_server_whose_settings_change_is_not_written_to(fast_folder: Path) -> None:
    server = Server(fast_folder)
    try:
        store = open_store(server.url)
        store.append([(5, Event(1, 1))])
        client = redis.Redis.from_url(server.url)
        for wrong, right in (
            ({"appendfsync": "no"}, {"appendfsync": "always"}),
            ({"maxmemory": 10**8, "maxmemory-policy": "allkeys-lru"}, {"maxmemory": 0}),
        ):
            # The connections of the store stay open.
            for name, value in wrong.items():
                client.config_set(name, value)
            for call in (store.check, lambda: store.append([(5, Event(2, 2))])):
                with pytest.raises(StoreError, match="would (lose|drop)"):
                    call()
            for name, value in right.items():
                client.config_set(name, value)
            store.check()
        store.append([(5, Event(3, 3))])
        assert store.history(5) == [Event(1, 1), Event(3, 3)]
        client.close()
        store.close()
    finally:
        server.kill()


@needs_server
def test_a_server_that_comes_back_with_other_settings_is_not_written_to(fast_folder: Path) -> None:
    server = Server(fast_folder)
    store = open_store(server.url)
    store.append([(5, Event(1, 1))])
    server.kill()
    with pytest.raises(StoreError):
        store.append([(5, Event(2, 2))])
    server._settings = ("--appendonly", "yes", "--appendfsync", "everysec")
    server.start()
    try:
        for _ in range(2):
            with pytest.raises(StoreError, match="would lose acknowledged events"):
                store.append([(5, Event(3, 3))])
    finally:
        server.kill()
    server._settings = ("--appendonly", "yes", "--appendfsync", "always")
    server.start()
    try:
        store.append([(5, Event(4, 4))])
        assert store.history(5) == [Event(1, 1), Event(4, 4)]
        store.close()
    finally:
        server.kill()


@needs_server
def test_two_gateways_lose_nothing_of_one_user(server: Server) -> None:
    stores = [open_store(server.url, LIMIT) for _ in range(4)]

    def write(number: int) -> None:
        for at in range(25):
            stores[number].append([("shared by gateways", Event(f"{number}-{at}", at))])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores[0].history("shared by gateways")) == 100
    for store in stores:
        store.close()
