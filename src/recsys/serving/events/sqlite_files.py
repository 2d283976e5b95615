"""Bytes of an event store in SQLite: what its file holds of a user, and how its log is emptied. Imports no torch."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from recsys.serving.events.byte_search import count, count_in_file, search_file
from recsys.serving.events.event_store import Searched, StoreError, UserId

_SMALLEST, _LARGEST = -(2**63), 2**63 - 1
_NUMBER = re.compile(r"-?[1-9][0-9]*", re.ASCII)
# Bytes of the beginning of a history in a pattern, and of each further one; distance of the further ones, such that
# every page of a long history has one.
_BEGIN_BYTES, _INNER_BYTES, _STEP_BYTES = 48, 32, 2000
# Seconds to wait until no process reads the log.
_WAIT_SECONDS = 30.0


def as_stored(user_id: UserId) -> bytes:
    """Return the bytes of an id in the file: text as UTF-8, a number with the most significant byte first."""
    if isinstance(user_id, str):
        return user_id.encode()
    # 0 and 1 take no byte.
    sizes = (size for size in (1, 2, 3, 4, 6, 8) if -(2 ** (8 * size - 1)) <= user_id < 2 ** (8 * size - 1))
    return b"" if user_id in (0, 1) else user_id.to_bytes(next(sizes), "big", signed=True)


def as_bytes(content: bytes | str) -> bytes:
    """Return a value as bytes; a column of bytes may hold text."""
    return content.encode() if isinstance(content, str) else bytes(content)


def patterns_of(user_id: UserId, content: bytes | str) -> set[bytes]:
    """Return byte patterns of the row of a user, whose content follows the id."""
    held = as_bytes(content)
    inner = {held[begin : begin + _INNER_BYTES] for begin in range(_STEP_BYTES, len(held), _STEP_BYTES)}
    return {as_stored(user_id) + held[:_BEGIN_BYTES], *inner}


def empty_log(writer: sqlite3.Connection, path: Path) -> None:
    """Move the content of the write-ahead log to the file, and empty the log.

    Raises:
        StoreError: If another process keeps reading the log.
    """
    give_up = time.monotonic() + _WAIT_SECONDS
    while writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        if time.monotonic() > give_up:
            raise StoreError(f"events: {path}: the log cannot be emptied, because a process keeps reading it")
        time.sleep(0.01)


def compact(
    writer: sqlite3.Connection, path: Path, patterns: Collection[bytes], *, owned: Callable[[], Iterator[list[bytes]]]
) -> list[Searched]:
    """Empty the log, search the file and the log, and write the file anew if it has patterns that no row owns.

    Args:
        writer: connection without a transaction.
        path: file of the connection.
        patterns: bytes to search for.
        owned: yields the contents of rows, which may have the patterns.
    """
    empty_log(writer, path)
    if found := _leftover(path, patterns, owned):
        writer.execute("VACUUM")
        empty_log(writer, path)
        found = _leftover(path, patterns, owned)
    return [Searched(str(path), path.stat().st_size, found), search_file(Path(f"{path}-wal"), patterns)]


def _leftover(path: Path, patterns: Collection[bytes], owned: Callable[[], Iterator[list[bytes]]]) -> int:
    found = count_in_file(path, patterns)
    # Between two rows, so that no pattern matches across them.
    between = os.urandom(16)
    return max(0, found - sum(count(between.join(block), patterns) for block in owned())) if found else 0


def number_ranges(prefix: str) -> list[tuple[int, int]]:
    """Return closed ranges of 64-bit integers that begin with `prefix`: 12, 120 to 129, 1200 to 1299, ..."""
    if prefix == "":
        return [(_SMALLEST, _LARGEST)]
    if prefix == "-":
        return [(_SMALLEST, -1)]
    if prefix == "0":
        return [(0, 0)]
    # Longer prefixes match no integer of 64 bits.
    if not _NUMBER.fullmatch(prefix) or len(prefix) > 20:
        return []
    number, ranges = abs(int(prefix)), []
    while number <= (_LARGEST if prefix[0] != "-" else -_SMALLEST):
        width = len(str(number)) - len(prefix.lstrip("-"))
        first, last = number, number + 10**width - 1
        ranges.append((first, min(last, _LARGEST)) if prefix[0] != "-" else (max(-last, _SMALLEST), -first))
        number *= 10
    return ranges
