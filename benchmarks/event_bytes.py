"""Measure the bytes that one event makes an event store write, and the time of a write and of a read.

    python benchmarks/event_bytes.py --held 200 --events 1000

Some users have so many events in the store already. Events are appended one by one, at the end of a history. Bytes are
those of the append-only file of a Valkey or Redis server, and of the log of SQLite. Times are of the processor of this
process, which is not that of the server.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from serving_isolation import valkey

from recsys.serving.events import Event, EventStore, SQLiteEvents, open_store

FEATURES = {"device": "phone", "rating": 4.5}


def measure(name: str, store: EventStore, size: Callable[[], int], given: argparse.Namespace) -> None:
    for user in range(given.users):
        store.append([(user, Event(item, 10**9 + item, FEATURES)) for item in range(given.held)])
    # A history of another form is written anew once.
    store.append([(user, Event(0, 2 * 10**9, FEATURES)) for user in range(given.users)])
    before, begin = size(), time.process_time()
    for number in range(given.events):
        store.append([(number % given.users, Event(number, 2 * 10**9 + 1 + number, FEATURES))])
    spent, written = time.process_time() - begin, size() - before
    begin = time.process_time()
    for number in range(given.events):
        store.history(number % given.users)
    read = time.process_time() - begin
    print(
        f"{name}: {written / given.events:,.0f} bytes an event, {1e3 * spent / given.events:.3f} ms to write it, "
        f"{1e3 * read / given.events:.3f} ms to read a history"
    )
    store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held", type=int, default=200)
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--users", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, valkey(Path(name)) as (url, _):
        folder = Path(name)
        path = folder / "events.sqlite"
        kept = SQLiteEvents(path, given.held)
        kept._file.writer.execute("PRAGMA wal_autocheckpoint = 0")
        measure("SQLite", kept, lambda: Path(f"{path}-wal").stat().st_size, given)
        files = lambda: sum(one.stat().st_size for one in folder.glob("append*/*.aof"))  # noqa: E731 (short)
        measure("server", open_store(url, given.held), files, given)


if __name__ == "__main__":
    main()
