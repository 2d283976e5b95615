"""Event store in an SQLite file, which several processes of one machine may share."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys.core.errors import UserError
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
from recsys.serving.events.sqlite_connections import SQLiteFile
from recsys.serving.events.sqlite_files import as_bytes, as_stored, compact, empty_log, number_ranges, patterns_of

_HISTORY = "SELECT events FROM histories WHERE user_id = ?"
_USERS = "SELECT user_id FROM histories WHERE user_id BETWEEN ? AND ? ORDER BY user_id LIMIT ?"
_PAGE = "SELECT rowid, user_id, events FROM histories WHERE rowid > ? AND rowid <= ? ORDER BY rowid LIMIT ?"
_SAVE_HISTORY = "INSERT OR REPLACE INTO histories VALUES (?, ?)"

# Maximum number of parameters of one statement.
_BATCH = 10_000
# Histories of one step of `expire`.
_EXPIRED_AT_ONCE = 500


class SQLiteEvents:
    """`EventStore` in a file. A history is one row, so that a read is one look-up."""

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
        self.max_events, self._unreadable = max_events, unreadable
        self._max_age_days, self._clock = max_age_days, clock
        self._group = GroupCommit(self._append)
        self._file = SQLiteFile(Path(path))

    def check(self) -> None:
        """Raise `StoreError` if the file was emptied, replaced or removed; see `EventStore.check`."""
        self._file.check()

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
        with self._file.transaction() as writer:
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
        with self._file.reader() as reader:
            return self._read(reader, user_id)

    def _read(self, connection: sqlite3.Connection, user_id: UserId) -> list[Event]:
        row = connection.execute(_HISTORY, (user_id,)).fetchone()
        return [] if row is None else self._decode(row[0])

    def _decode(self, content: Any) -> list[Event]:
        return decode_events(content, self.max_events, unreadable=self._unreadable, since=self._since)

    def histories(self, user_ids: Sequence[UserId]) -> list[list[Event]]:
        """Return the history of each user; see `EventStore.histories`."""
        found: dict[UserId, bytes] = {}
        with self._file.reader() as reader:
            for begin in range(0, len(user_ids), _BATCH):
                batch = user_ids[begin : begin + _BATCH]
                places = ",".join("?" * len(batch))
                found.update(
                    reader.execute(f"SELECT user_id, events FROM histories WHERE user_id IN ({places})", batch)
                )
        return [self._decode(found[user]) if user in found else [] for user in user_ids]

    def profile(self, user_id: UserId) -> Mapping[str, Any]:
        """Return the profile features of a user; see `EventStore.profile`."""
        with self._file.reader() as reader:
            row = reader.execute("SELECT profile FROM profiles WHERE user_id = ?", (user_id,)).fetchone()
        return {} if row is None else decode_profile(row[0], unreadable=self._unreadable)

    def users(self, prefix: str, limit: int) -> list[UserId]:
        """Return users in order, by the index; see `EventStore.users`."""
        # SQLite sorts numbers before texts; U+10FFFF sorts after all other characters.
        ranges = [*number_ranges(prefix), (prefix, prefix + "\U0010ffff")]
        found: list[UserId] = []
        with self._file.reader() as reader:
            for first, last in ranges:
                rows = reader.execute(_USERS, (first, last, limit - len(found)))
                found.extend(user for (user,) in rows)
        return found

    def forget(self, user_ids: Sequence[UserId]) -> Erased:
        """Remove users; see `EventStore.forget`."""
        users = both_forms(user_ids)
        with self._group.exclusive(), self._file.transaction() as writer:
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
        with self._file.reader() as reader:
            return _forgotten(reader, user_ids)

    def suppress(self, hashes: Collection[str]) -> int:
        """Forget users by hash; see `EventStore.suppress`."""
        with self._file.reader() as reader:
            new = set(hashes) - {one for (one,) in reader.execute("SELECT hash FROM suppressed")}
        if not new:
            return 0
        with self._group.exclusive(), self._file.transaction() as writer:
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
                return compact(self._file.writer, self._file.path, wanted, owned=self._contents)
            except sqlite3.Error as error:
                raise StoreError(f"events: {self._file.path}: {error}") from error

    def _contents(self) -> Iterator[list[bytes]]:
        """Yield the bytes of all rows; the index of a table has the ids once more."""
        for table in ("histories", "profiles"):
            rows = self._file.writer.execute(f"SELECT * FROM {table}")
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
        with self._file.reader() as reader:
            (end,) = reader.execute("SELECT ifnull(max(rowid), 0) FROM histories").fetchone()
        while last < end:
            with self._file.reader() as reader:
                rows = reader.execute(_PAGE, (last, end, _EXPIRED_AT_ONCE)).fetchall()
            last = rows[-1][0] if rows else end
            old = [user for _, user, content in rows if has_older(content, since)]
            if old:
                with self._group.exclusive(), self._file.transaction() as writer:
                    for user in old:
                        if kept := self._read(writer, user):
                            writer.execute(_SAVE_HISTORY, (user, encode_events(kept)))
                        else:
                            writer.execute("DELETE FROM histories WHERE user_id = ?", (user,))
                expired += len(old)
        if expired:
            with self._group.exclusive():
                empty_log(self._file.writer, self._file.path)
        return expired

    def restore(self, users: Sequence[Restored], source: str, *, done: int) -> None:
        """Merge users of a source; see `EventStore.restore`."""
        with self._group.exclusive(), self._file.transaction() as writer:
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
        with self._file.reader() as reader:
            row = reader.execute("SELECT done FROM restored WHERE source = ?", (source,)).fetchone()
        return 0 if row is None else int(row[0])

    def close(self) -> None:
        """Close the store; see `EventStore.close`."""
        with self._group.exclusive():
            self._file.close()


def _forgotten(connection: sqlite3.Connection, user_ids: Sequence[UserId]) -> set[UserId]:
    if connection.execute("SELECT 1 FROM suppressed LIMIT 1").fetchone() is None:
        return set()
    look_up = "SELECT 1 FROM suppressed WHERE hash = ?"
    return {user for user in user_ids if connection.execute(look_up, (hash_of(user),)).fetchone() is not None}
