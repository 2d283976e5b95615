"""Impressions and outcomes in an SQLite file, which several processes of one machine may share. Imports no torch."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from recsys.core.errors import UserError
from recsys.core.io import private_folder
from recsys.serving.events import StoreError, UserId
from recsys.serving.events.byte_search import useful
from recsys.serving.events.event_store import Searched, both_forms
from recsys.serving.events.grouping import GroupCommit
from recsys.serving.events.sqlite_files import compact
from recsys.serving.impressions.impression_store import StoredOutcome
from recsys.serving.impressions.records import Batch, decode_batch, encode_batch
from recsys.serving.impressions.rewriting import without_users

_TABLES = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS batches
    (number INTEGER PRIMARY KEY AUTOINCREMENT, batch BLOB UNIQUE NOT NULL, at INTEGER NOT NULL, content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS outcomes
    (batch BLOB NOT NULL, place INTEGER NOT NULL, item_id NOT NULL, action TEXT NOT NULL, at INTEGER NOT NULL,
     PRIMARY KEY (batch, place, item_id, action)) WITHOUT ROWID;
PRAGMA application_id = 0x72656369;
PRAGMA user_version = 1;
COMMIT;
"""
# One statement, because each one lets the event loop wait for this thread and this thread for the event loop.
_EXPIRED_AND_BYTES = """
SELECT coalesce((SELECT max(number) FROM batches WHERE number <= (SELECT min(number) + ? FROM batches) AND at < ?), 0),
       (page_count - freelist_count) * page_size
FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()
"""
_TIMEOUT_SECONDS = 30.0
# Number of parameters of one statement, and share of the batches that make room for new ones.
_MOST, _SHARE = 1000, 16
_PAGE = 200


class SQLiteImpressions:
    """`ImpressionStore` in a file in WAL mode. Outcomes return after fsync, batches of impressions before it."""

    def __init__(self, path: str | Path, *, keep_seconds: int, max_bytes: int) -> None:
        self._path, self._keep_seconds, self._max_bytes = Path(path), keep_seconds, max_bytes
        self._lock = threading.Lock()
        self._group: GroupCommit[StoredOutcome, bool] = GroupCommit(self._add_outcomes)
        try:
            private_folder(self._path.parent)
            # Impressions name users, so that only the owner reads them.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            self._fast, self._durable, self._reader = self._connect("NORMAL"), self._connect("FULL"), self._connect()
            self._fast.execute("PRAGMA journal_mode = WAL")
            self._fast.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"impressions: {path}: cannot be opened as a store of impressions ({error})") from error

    def _connect(self, synchronous: str = "FULL") -> sqlite3.Connection:
        made = sqlite3.connect(self._path, timeout=_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)
        made.execute(f"PRAGMA synchronous = {synchronous}")
        return made

    def add(self, batch: bytes, content: bytes, at: float) -> None:
        """Store a batch; see `ImpressionStore.add`."""
        with self._lock, self._transaction(self._fast) as writer:
            writer.execute("INSERT INTO batches (batch, at, content) VALUES (?, ?, ?)", (batch, int(at), content))
            self._remove_old(writer, at)

    def _remove_old(self, writer: sqlite3.Connection, at: float) -> bool:
        """Remove some batches that expired, or are too much; return whether there were any."""
        last, num_bytes = writer.execute(_EXPIRED_AND_BYTES, (_MOST, at - self._keep_seconds)).fetchone()
        if num_bytes > self._max_bytes:
            first, newest = writer.execute("SELECT min(number), max(number) FROM batches").fetchone()
            # The newest one stays, however small the limit is.
            last = max(last, min(first + (newest - first) // _SHARE, newest - 1)) if newest else 0
        if not last:
            return False
        writer.execute("DELETE FROM outcomes WHERE batch IN (SELECT batch FROM batches WHERE number <= ?)", (last,))
        return writer.execute("DELETE FROM batches WHERE number <= ?", (last,)).rowcount > 0

    def expire(self) -> None:
        """Remove what expired; see `ImpressionStore.expire`. Its bytes are overwritten."""
        has_old = True
        with self._group.exclusive():
            while has_old:
                with self._transaction(self._durable) as writer:
                    writer.execute("PRAGMA secure_delete = ON")
                    has_old = self._remove_old(writer, time.time())
            with self._errors():
                self._durable.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def get(self, batches: Sequence[bytes]) -> Mapping[bytes, Batch]:
        """Return batches by id; see `ImpressionStore.get`."""
        found: dict[bytes, Batch] = {}
        for begin in range(0, len(batches), _MOST):
            part = batches[begin : begin + _MOST]
            places = ",".join("?" * len(part))
            for name, content in self._read(f"SELECT batch, content FROM batches WHERE batch IN ({places})", part):
                batch = decode_batch(content)
                if batch is not None:
                    found[name] = batch
        return found

    def add_outcomes(self, outcomes: Sequence[StoredOutcome]) -> list[bool]:
        """Add outcomes; see `ImpressionStore.add_outcomes`."""
        return self._group.append(outcomes) if outcomes else []

    def _add_outcomes(self, outcomes: Sequence[StoredOutcome]) -> list[bool]:
        with self._transaction(self._durable) as writer:
            return [
                writer.execute("INSERT OR IGNORE INTO outcomes VALUES (?, ?, ?, ?, ?)", one).rowcount == 1
                for one in outcomes
            ]

    def batches(self, since: int) -> Iterator[tuple[bytes, Batch]]:
        """Yield batches; see `ImpressionStore.batches`."""
        number = 0
        select = "SELECT number, batch, content FROM batches WHERE number > ? AND at >= ? ORDER BY number LIMIT ?"
        while rows := self._read(select, (number, since, _PAGE)):
            for number, name, content in rows:  # noqa: B007 (the next page begins after the last number)
                batch = decode_batch(content)
                if batch is not None:
                    yield name, batch

    def outcomes(self) -> Iterator[StoredOutcome]:
        """Yield outcomes; see `ImpressionStore.outcomes`."""
        yield from map(StoredOutcome._make, self._read("SELECT batch, place, item_id, action, at FROM outcomes"))

    def forget(self, user_ids: Sequence[UserId]) -> None:
        """Remove users; see `ImpressionStore.forget`."""
        for name, batch in self.batches(0):
            kept, places = without_users(batch, user_ids)
            if places:
                with self._group.exclusive(), self._transaction(self._durable) as writer:
                    writer.execute("PRAGMA secure_delete = ON")
                    writer.execute("UPDATE batches SET content = ? WHERE batch = ?", (encode_batch(kept), name))
                    writer.executemany(
                        "DELETE FROM outcomes WHERE batch = ? AND place = ?", [(name, place) for place in places]
                    )
        with self._group.exclusive(), self._errors():
            self._durable.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def search(self, user_ids: Sequence[UserId]) -> list[Searched]:
        """Compact and search the file; see `ImpressionStore.search`."""
        patterns = useful(map(msgspec.msgpack.encode, both_forms(user_ids)))
        with self._lock, self._group.exclusive(), self._errors():
            return compact(self._durable, self._path, patterns, owned=self._contents)

    def _contents(self) -> Iterator[list[bytes]]:
        rows = self._durable.execute("SELECT content FROM batches")
        while block := rows.fetchmany(_PAGE):
            yield [content for (content,) in block]

    def close(self) -> None:
        """Close the file."""
        with self._lock, self._group.exclusive():
            for connection in (self._fast, self._durable, self._reader):
                connection.close()

    def _read(self, select: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._errors():
            return self._reader.execute(select, values).fetchall()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"impressions: {self._path}: {error}") from error

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
        with self._errors():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
