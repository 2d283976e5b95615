"""File of an event store in SQLite: how it is opened, checked, read and written. Imports no torch."""

from __future__ import annotations

import os
import sqlite3
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recsys.core.errors import UserError
from recsys.core.io import PRIVATE_FILE, private_folder
from recsys.serving.events.event_store import StoreError

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
# Seconds to wait for the write of another process.
_TIMEOUT_SECONDS = 30.0


class SQLiteFile:
    """A file in WAL mode; a transaction ends after fsync. WAL needs shared memory, so the disk must be local.

    Attributes:
        writer: connection of all writes, of one thread at a time.

    Raises:
        UserError: If the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._readers: deque[sqlite3.Connection] = deque()
        try:
            private_folder(path.parent)
            self._refuse_emptied()
            # SQLite gives its other files the mode of this one.
            path.touch(PRIVATE_FILE)
            self.writer = self._connect()
            self._prepare()
            self._marker.touch(PRIVATE_FILE)
            self._inode = os.stat(path).st_ino
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"events: {path}: cannot be opened as an event store ({error})") from error

    def _connect(self) -> sqlite3.Connection:
        # Transactions are explicit. Threads share connections, but only one uses a connection at a time.
        return sqlite3.connect(self.path, timeout=_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)

    @property
    def _marker(self) -> Path:
        return Path(f"{self.path}.exists")

    def _refuse_emptied(self) -> None:
        """Refuse a file without content that was a store before; a new one has no marker yet."""
        if not self.path.exists():
            self._marker.unlink(missing_ok=True)
        elif self.path.stat().st_size == 0 and self._marker.exists():
            raise UserError(
                f"events: {self.path}: the file was emptied; restore it, or remove it to begin without events"
            )

    def _prepare(self) -> None:
        (application,) = self.writer.execute("PRAGMA application_id").fetchone()
        (version,) = self.writer.execute("PRAGMA user_version").fetchone()
        (num_tables,) = self.writer.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if num_tables and application != APPLICATION:
            raise UserError(f"events: {self.path}: an SQLite file of another program, expected an event store")
        if num_tables and version != FORMAT:
            raise UserError(f"events: {self.path}: format {version}, expected {FORMAT}")
        (mode,) = self.writer.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise UserError(f"events: {self.path}: journal mode {mode}, expected wal; is it on a local disk?")
        self.writer.execute("PRAGMA synchronous = FULL")
        # On macOS fsync alone returns before the data is on the disk.
        self.writer.execute("PRAGMA fullfsync = ON")
        # Deleted data is overwritten, because users may request deletion.
        self.writer.execute("PRAGMA secure_delete = ON")
        if not num_tables:
            self.writer.executescript(_TABLES)
        self.writer.execute(_SUPPRESSED)

    def check(self) -> None:
        """Raise `StoreError` if the file was emptied, replaced or removed."""
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise StoreError(f"events: {self.path}: {error.strerror}") from error
        if found.st_ino != self._inode or found.st_size == 0:
            raise StoreError(f"events: {self.path}: the file was emptied or replaced; restore it and start again")

    def close(self) -> None:
        """Close all connections."""
        self.writer.close()
        while self._readers:
            self._readers.pop().close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit or roll back the writes of this context; they are durable when it ends."""
        try:
            self.writer.execute("BEGIN IMMEDIATE")
            try:
                yield self.writer
                self.writer.execute("COMMIT")
            except BaseException:
                if self.writer.in_transaction:
                    self.writer.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(f"events: {self.path}: {error}") from error

    @contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection for reading, which no other thread uses meanwhile."""
        try:
            reader = self._readers.pop()
        except IndexError:
            reader = self._connect()
        try:
            yield reader
        except sqlite3.Error as error:
            raise StoreError(f"events: {self.path}: {error}") from error
        finally:
            self._readers.append(reader)
