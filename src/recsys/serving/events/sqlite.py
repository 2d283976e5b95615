"""Event store in an SQLite file, which several processes of one machine may share."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recsys.core.errors import UserError
from recsys.core.io import PRIVATE_FILE, private_folder
from recsys.core.suppression import hash_of
from recsys.serving.events.byte_search import useful
from recsys.serving.events.event_store import (
    Erased,
    Event,
    Outcome,
    Restored,
    Searched,
    StoreError,
    Unreadable,
    UserId,
    both_forms,
    first_second,
    ignore,
)
from recsys.serving.events.grouping import GroupCommit
from recsys.serving.events.merging import (
    Arrivals,
    decode_events,
    decode_profile,
    encode_events,
    encode_profile,
    has_older,
    merge,
)
from recsys.serving.events.sqlite_files import as_bytes, as_stored, compact, empty_log, number_ranges, patterns_of

# "recs" marks the files of this store among other SQLite files. The format is the version of the tables below.
APPLICATION, FORMAT = 0x72656373, 1

# A column without a type keeps the type of the value: user 5 and user "5" are two rows.
_TABLES = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS histories (user_id PRIMARY KEY NOT NULL, events BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS profiles (user_id PRIMARY KEY NOT NULL, profile BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS restored (source TEXT PRIMARY KEY NOT NULL, done INTEGER NOT NULL);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {FORMAT};
COMMIT;
"""
# Hashes of forgotten users; stores of earlier versions have no such table.
_SUPPRESSED = "CREATE TABLE IF NOT EXISTS suppressed (hash TEXT PRIMARY KEY NOT NULL) WITHOUT ROWID"
_HISTORY = "SELECT events FROM histories WHERE user_id = ?"
_USERS = "SELECT user_id FROM histories WHERE user_id BETWEEN ? AND ? ORDER BY user_id LIMIT ?"
_PAGE = "SELECT rowid, user_id, events FROM histories WHERE rowid > ? AND rowid <= ? ORDER BY rowid LIMIT ?"
_SAVE_HISTORY = "INSERT OR REPLACE INTO histories VALUES (?, ?)"

# Maximum number of parameters of one statement.
_BATCH = 10_000
# Histories of one step of `expire`.
_EXPIRED_AT_ONCE = 500
# Seconds to wait for the write of another process.
_TIMEOUT_SECONDS = 30.0


class SQLiteEvents:
    """`EventStore` in a file in WAL mode; a write returns after fsync.

    A history is one row, so that a read is one look-up. WAL needs shared memory, so the file must be on a local disk.
    """

    is_embedded = True

    def __init__(
        self,
        path: str | Path,
        max_events: int = 200,
        *,
        max_age_days: float | None = None,
        unreadable: Unreadable = ignore,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if max_events < 1:
            raise UserError(f"max_events: found {max_events}, expected at least 1")
        self._path, self.max_events, self._unreadable = Path(path), max_events, unreadable
        self._max_age_days, self._clock = max_age_days, clock
        self._readers: deque[sqlite3.Connection] = deque()
        self._group = GroupCommit(self._append)
        try:
            private_folder(self._path.parent)
            self._refuse_emptied()
            # SQLite gives its other files the mode of this one.
            self._path.touch(PRIVATE_FILE)
            self._writer = self._connect()
            self._prepare()
            self._marker.touch(PRIVATE_FILE)
            self._inode = os.stat(self._path).st_ino
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"events: {path}: cannot be opened as an event store ({error})") from error

    def _connect(self) -> sqlite3.Connection:
        # Transactions are explicit. Threads share connections, but only one uses a connection at a time.
        return sqlite3.connect(self._path, timeout=_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)

    @property
    def _marker(self) -> Path:
        return Path(f"{self._path}.exists")

    def _refuse_emptied(self) -> None:
        """Refuse a file without content that was a store before; a new one has no marker yet."""
        if not self._path.exists():
            self._marker.unlink(missing_ok=True)
        elif self._path.stat().st_size == 0 and self._marker.exists():
            raise UserError(
                f"events: {self._path}: the file was emptied; restore it, or remove it to begin without events"
            )

    def check(self) -> None:
        """Raise `StoreError` if the file was emptied, replaced or removed; see `EventStore.check`."""
        try:
            found = os.stat(self._path)
        except OSError as error:
            raise StoreError(f"events: {self._path}: {error.strerror}") from error
        if found.st_ino != self._inode or found.st_size == 0:
            raise StoreError(f"events: {self._path}: the file was emptied or replaced; restore it and start again")

    def _prepare(self) -> None:
        (application,) = self._writer.execute("PRAGMA application_id").fetchone()
        (version,) = self._writer.execute("PRAGMA user_version").fetchone()
        (num_tables,) = self._writer.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if num_tables and application != APPLICATION:
            raise UserError(f"events: {self._path}: an SQLite file of another program, expected an event store")
        if num_tables and version != FORMAT:
            raise UserError(f"events: {self._path}: format {version}, expected {FORMAT}")
        (mode,) = self._writer.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise UserError(f"events: {self._path}: journal mode {mode}, expected wal; is it on a local disk?")
        self._writer.execute("PRAGMA synchronous = FULL")
        # On macOS fsync alone returns before the data is on the disk.
        self._writer.execute("PRAGMA fullfsync = ON")
        # Deleted data is overwritten, because users may request deletion.
        self._writer.execute("PRAGMA secure_delete = ON")
        if not num_tables:
            self._writer.executescript(_TABLES)
        self._writer.execute(_SUPPRESSED)

    @property
    def _since(self) -> int | None:
        return first_second(self._max_age_days, self._clock)

    def append(self, events: Sequence[tuple[UserId, Event]]) -> list[Outcome]:
        """Add events; see `EventStore.append`."""
        # Encoding before the shared write makes an error affect only its own sender.
        encode_events([event for _, event in events])
        return self._group.append(events) if events else []

    def _append(self, events: Sequence[tuple[UserId, Event]]) -> list[Outcome]:
        arrivals = Arrivals(events, self.max_events, since=self._since)
        with self._transaction() as writer:
            forgotten = _forgotten(writer, arrivals.users)
            for user_id in arrivals.users:
                if user_id in forgotten:
                    arrivals.drop(user_id)
                    continue
                held = self._read(writer, user_id)
                kept = arrivals.merge(user_id, held)
                if kept != held:
                    writer.execute(_SAVE_HISTORY, (user_id, encode_events(kept)))
        return arrivals.outcomes()

    def history(self, user_id: UserId) -> list[Event]:
        """Return the events of a user; see `EventStore.history`."""
        with self._reader() as reader:
            return self._read(reader, user_id)

    def _read(self, connection: sqlite3.Connection, user_id: UserId) -> list[Event]:
        row = connection.execute(_HISTORY, (user_id,)).fetchone()
        return [] if row is None else self._decode(row[0])

    def _decode(self, content: Any) -> list[Event]:
        return decode_events(content, self.max_events, unreadable=self._unreadable, since=self._since)

    def histories(self, user_ids: Sequence[UserId]) -> list[list[Event]]:
        """Return the history of each user; see `EventStore.histories`."""
        found: dict[UserId, bytes] = {}
        with self._reader() as reader:
            for begin in range(0, len(user_ids), _BATCH):
                batch = user_ids[begin : begin + _BATCH]
                places = ",".join("?" * len(batch))
                found.update(
                    reader.execute(f"SELECT user_id, events FROM histories WHERE user_id IN ({places})", batch)
                )
        return [self._decode(found[user]) if user in found else [] for user in user_ids]

    def profile(self, user_id: UserId) -> Mapping[str, Any]:
        """Return the profile features of a user; see `EventStore.profile`."""
        with self._reader() as reader:
            row = reader.execute("SELECT profile FROM profiles WHERE user_id = ?", (user_id,)).fetchone()
        return {} if row is None else decode_profile(row[0], unreadable=self._unreadable)

    def users(self, prefix: str, limit: int) -> list[UserId]:
        """Return users in order, by the index; see `EventStore.users`."""
        # SQLite sorts numbers before texts; U+10FFFF sorts after all other characters.
        ranges = [*number_ranges(prefix), (prefix, prefix + "\U0010ffff")]
        found: list[UserId] = []
        with self._reader() as reader:
            for first, last in ranges:
                rows = reader.execute(_USERS, (first, last, limit - len(found)))
                found.extend(user for (user,) in rows)
        return found

    def forget(self, user_ids: Sequence[UserId]) -> Erased:
        """Remove users; see `EventStore.forget`."""
        users = both_forms(user_ids)
        with self._group.exclusive(), self._transaction() as writer:
            writer.executemany("INSERT OR IGNORE INTO suppressed VALUES (?)", [(hash_of(user),) for user in users])
            return self._remove(writer, users)

    def _remove(self, writer: sqlite3.Connection, users: Sequence[UserId]) -> Erased:
        removed = {"histories": 0, "profiles": 0}
        patterns: set[bytes] = set()
        for table in removed:
            for user in users:
                row = writer.execute(f"SELECT * FROM {table} WHERE user_id = ?", (user,)).fetchone()
                if row is not None:
                    removed[table] += 1
                    patterns |= patterns_of(user, row[1])
                    writer.execute(f"DELETE FROM {table} WHERE user_id = ?", (user,))
        return Erased(removed["histories"], removed["profiles"], useful(patterns))

    def suppressed(self, user_ids: Sequence[UserId]) -> set[UserId]:
        """Return the forgotten users; see `EventStore.suppressed`."""
        with self._reader() as reader:
            return _forgotten(reader, user_ids)

    def suppress(self, hashes: Collection[str]) -> int:
        """Forget users by hash; see `EventStore.suppress`."""
        with self._reader() as reader:
            new = set(hashes) - {one for (one,) in reader.execute("SELECT hash FROM suppressed")}
        if not new:
            return 0
        with self._group.exclusive(), self._transaction() as writer:
            writer.executemany("INSERT OR IGNORE INTO suppressed VALUES (?)", [(one,) for one in sorted(new)])
            rows = writer.execute("SELECT user_id FROM histories UNION SELECT user_id FROM profiles")
            users = [user for (user,) in rows if hash_of(user) in new]
            self._remove(writer, users)
        return len(users)

    def search(self, user_ids: Sequence[UserId], patterns: Collection[bytes]) -> list[Searched]:
        """Compact and search the files; see `EventStore.search`."""
        wanted = useful([*map(as_stored, both_forms(user_ids)), *patterns])
        with self._group.exclusive():
            try:
                return compact(self._writer, self._path, wanted, owned=self._contents)
            except sqlite3.Error as error:
                raise StoreError(f"events: {self._path}: {error}") from error

    def _contents(self) -> Iterator[list[bytes]]:
        """Yield the bytes of all rows; the index of a table has the ids once more."""
        for table in ("histories", "profiles"):
            rows = self._writer.execute(f"SELECT * FROM {table}")
            while block := rows.fetchmany(1000):
                ids = [as_stored(user) for user, _ in block]
                yield ids
                yield [one + as_bytes(row[1]) for one, row in zip(ids, block, strict=True)]

    def expire(self) -> int:
        """Remove old events; see `EventStore.expire`."""
        since = self._since
        if since is None:
            return 0
        expired = last = 0
        with self._reader() as reader:
            (end,) = reader.execute("SELECT ifnull(max(rowid), 0) FROM histories").fetchone()
        while last < end:
            with self._reader() as reader:
                rows = reader.execute(_PAGE, (last, end, _EXPIRED_AT_ONCE)).fetchall()
            last = rows[-1][0] if rows else end
            old = [user for _, user, content in rows if has_older(content, since)]
            if old:
                with self._group.exclusive(), self._transaction() as writer:
                    for user in old:
                        if kept := self._read(writer, user):
                            writer.execute(_SAVE_HISTORY, (user, encode_events(kept)))
                        else:
                            writer.execute("DELETE FROM histories WHERE user_id = ?", (user,))
                expired += len(old)
        if expired:
            with self._group.exclusive():
                empty_log(self._writer, self._path)
        return expired

    def restore(self, users: Sequence[Restored], source: str, *, done: int) -> None:
        """Merge users of a source; see `EventStore.restore`."""
        with self._group.exclusive(), self._transaction() as writer:
            histories, profiles = [], []
            forgotten = _forgotten(writer, [user.user_id for user in users])
            for user in users:
                if user.user_id in forgotten:
                    continue
                recent, held = user.events[-self.max_events :], self._read(writer, user.user_id)
                kept = merge(recent, held, max_events=self.max_events, since=self._since)
                if kept:
                    histories.append((user.user_id, encode_events(kept)))
                if user.profile:
                    profiles.append((user.user_id, encode_profile(user.profile)))
            writer.executemany(_SAVE_HISTORY, histories)
            writer.executemany("INSERT OR REPLACE INTO profiles VALUES (?, ?)", profiles)
            writer.execute("INSERT OR REPLACE INTO restored VALUES (?, ?)", (source, done))

    def restored(self, source: str) -> int:
        """Return the progress of a source; see `EventStore.restored`."""
        with self._reader() as reader:
            row = reader.execute("SELECT done FROM restored WHERE source = ?", (source,)).fetchone()
        return 0 if row is None else int(row[0])

    def close(self) -> None:
        """Close the store; see `EventStore.close`."""
        with self._group.exclusive():
            self._writer.close()
        while self._readers:
            self._readers.pop().close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit or roll back the writes of this context; they are durable when it ends."""
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


def _forgotten(connection: sqlite3.Connection, user_ids: Sequence[UserId]) -> set[UserId]:
    if connection.execute("SELECT 1 FROM suppressed LIMIT 1").fetchone() is None:
        return set()
    look_up = "SELECT 1 FROM suppressed WHERE hash = ?"
    return {user for user in user_ids if connection.execute(look_up, (hash_of(user),)).fetchone() is not None}
