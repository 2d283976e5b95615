"""Events in one SQLite file: the embedded store. Several processes of one machine may share the file."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recsys.core.errors import UserError
from recsys.serving.events.event_store import Event, Restored, StoreError, UserId
from recsys.serving.events.grouping import GroupCommit
from recsys.serving.events.merging import (
    by_user,
    decode_events,
    decode_profile,
    encode_events,
    encode_profile,
    merge,
)
from recsys.serving.events.prefixes import number_ranges

# "recs": tells the files of this store from other SQLite files. The version is of the tables below.
APPLICATION, FORMAT = 0x72656373, 1

# A column without a type keeps that of the value: user 5 and user "5" are two rows.
_TABLES = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS histories (user_id PRIMARY KEY NOT NULL, events BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS profiles (user_id PRIMARY KEY NOT NULL, profile BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS restored (source TEXT PRIMARY KEY NOT NULL, done INTEGER NOT NULL);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {FORMAT};
COMMIT;
"""
_HISTORY = "SELECT events FROM histories WHERE user_id = ?"
_USERS = "SELECT user_id FROM histories WHERE user_id BETWEEN ? AND ? ORDER BY user_id LIMIT ?"
_SAVE_HISTORY = "INSERT OR REPLACE INTO histories VALUES (?, ?)"

# Parameters of one statement.
_BATCH = 10_000
# Another process may hold the file for one write.
_PATIENCE_SECONDS = 30.0


class SQLiteEvents:
    """`EventStore` in a file: WAL mode, and a write returns only after fsync.

    A history is one row, so that reading one is one look-up.

    Args:
        path: the file, made where it is missing. Not on a network file system: WAL needs shared memory.
        max_events: kept of each user.

    Raises:
        UserError: the file is something else, or cannot be opened.
    """

    is_embedded = True

    def __init__(self, path: str | Path, max_events: int = 200) -> None:
        if max_events < 1:
            raise UserError(f"max_events: found {max_events}, expected at least 1")
        self._path, self.max_events = Path(path), max_events
        self._readers: deque[sqlite3.Connection] = deque()
        self._group = GroupCommit(self._append)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._connect()
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"events: {path}: cannot be opened as a store of events ({error})") from error

    def _connect(self) -> sqlite3.Connection:
        # Transactions are explicit. Connections wander between threads, but are used by one at a time.
        return sqlite3.connect(self._path, timeout=_PATIENCE_SECONDS, isolation_level=None, check_same_thread=False)

    def _prepare(self) -> None:
        (application,) = self._writer.execute("PRAGMA application_id").fetchone()
        (version,) = self._writer.execute("PRAGMA user_version").fetchone()
        (num_tables,) = self._writer.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if num_tables and application != APPLICATION:
            raise UserError(f"events: {self._path}: an SQLite file of another program, expected a store of events")
        if num_tables and version != FORMAT:
            raise UserError(f"events: {self._path}: format {version}, expected {FORMAT}")
        (mode,) = self._writer.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise UserError(f"events: {self._path}: journal mode {mode}, expected wal; is it on a local disk?")
        self._writer.execute("PRAGMA synchronous = FULL")
        # macOS acknowledges fsync before the disk does, unless asked.
        self._writer.execute("PRAGMA fullfsync = ON")
        # What a user wants forgotten is overwritten.
        self._writer.execute("PRAGMA secure_delete = ON")
        if not num_tables:
            self._writer.executescript(_TABLES)

    def append(self, events: Sequence[tuple[UserId, Event]]) -> None:
        """As in `EventStore`."""
        # Fails here for the one who sent it, rather than in a write shared with others.
        encode_events([event for _, event in events])
        if events:
            self._group.append(events)

    def _append(self, events: Sequence[tuple[UserId, Event]]) -> None:
        with self._transaction() as writer:
            for user_id, arrivals in by_user(events).items():
                held = self._read(writer, user_id)
                kept = merge(held, arrivals, self.max_events)
                if kept != held:
                    writer.execute(_SAVE_HISTORY, (user_id, encode_events(kept)))

    def history(self, user_id: UserId) -> list[Event]:
        """As in `EventStore`."""
        with self._reader() as reader:
            return self._read(reader, user_id)

    def _read(self, connection: sqlite3.Connection, user_id: UserId) -> list[Event]:
        row = connection.execute(_HISTORY, (user_id,)).fetchone()
        return [] if row is None else decode_events(row[0], self.max_events)

    def histories(self, user_ids: Sequence[UserId]) -> list[list[Event]]:
        """As in `EventStore`."""
        found: dict[UserId, bytes] = {}
        with self._reader() as reader:
            for begin in range(0, len(user_ids), _BATCH):
                batch = user_ids[begin : begin + _BATCH]
                places = ",".join("?" * len(batch))
                found.update(
                    reader.execute(f"SELECT user_id, events FROM histories WHERE user_id IN ({places})", batch)
                )
        return [decode_events(found[user], self.max_events) if user in found else [] for user in user_ids]

    def profile(self, user_id: UserId) -> Mapping[str, Any]:
        """As in `EventStore`."""
        with self._reader() as reader:
            row = reader.execute("SELECT profile FROM profiles WHERE user_id = ?", (user_id,)).fetchone()
        return {} if row is None else decode_profile(row[0])

    def users(self, prefix: str, limit: int) -> list[UserId]:
        """As in `EventStore`; in order, and by the index."""
        # Numbers sort before texts, and the last character of Unicode after all others.
        ranges = [*number_ranges(prefix), (prefix, prefix + "\U0010ffff")]
        found: list[UserId] = []
        with self._reader() as reader:
            for first, last in ranges:
                rows = reader.execute(_USERS, (first, last, limit - len(found)))
                found.extend(user for (user,) in rows)
        return found

    def forget(self, user_id: UserId) -> None:
        """As in `EventStore`."""
        with self._group.exclusive(), self._transaction() as writer:
            writer.execute("DELETE FROM histories WHERE user_id = ?", (user_id,))
            writer.execute("DELETE FROM profiles WHERE user_id = ?", (user_id,))

    def restore(self, users: Sequence[Restored], source: str, done: int) -> None:
        """As in `EventStore`."""
        with self._group.exclusive(), self._transaction() as writer:
            histories, profiles = [], []
            for user in users:
                recent = user.events[-self.max_events :]
                kept = merge(recent, self._read(writer, user.user_id), self.max_events)
                if kept:
                    histories.append((user.user_id, encode_events(kept)))
                if user.profile:
                    profiles.append((user.user_id, encode_profile(user.profile)))
            writer.executemany(_SAVE_HISTORY, histories)
            writer.executemany("INSERT OR REPLACE INTO profiles VALUES (?, ?)", profiles)
            writer.execute("INSERT OR REPLACE INTO restored VALUES (?, ?)", (source, done))

    def restored(self, source: str) -> int:
        """As in `EventStore`."""
        with self._reader() as reader:
            row = reader.execute("SELECT done FROM restored WHERE source = ?", (source,)).fetchone()
        return 0 if row is None else int(row[0])

    def close(self) -> None:
        """As in `EventStore`."""
        with self._group.exclusive():
            self._writer.close()
        while self._readers:
            self._readers.pop().close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; durable when it ends. One at a time within the process."""
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(f"events: {self._path}: {error}") from error

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        try:
            reader = self._readers.pop()
        except IndexError:
            reader = self._connect()
        try:
            yield reader
        except sqlite3.Error as error:
            raise StoreError(f"events: {self._path}: {error}") from error
        finally:
            self._readers.append(reader)
