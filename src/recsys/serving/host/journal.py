"""Journal of the item updates of a host: one record per line, durable before it is acknowledged. Imports no torch.

A line is `CRC32 JSON`. A record exists once its line break is written. A line that a crash cut off was never
acknowledged, and the next writer removes it. The processes of one host share the file, and each reads the records of
the others. The file is appended to in place, so a write costs the same for every length of the journal.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from filelock import FileLock

from recsys.core.errors import UserError
from recsys.core.io import PRIVATE_FILE, atomic_write, private_folder

# Fields that are decoded only when somebody needs them: most of a long log is of releases that no host serves.
Record = dict[str, msgspec.Raw]


class _Position(NamedTuple):
    """Place in a file up to which a process has read."""

    inode: int
    bytes: int
    lines: int


_START = _Position(-1, 0, 0)


# A journal is compacted when it is larger than this, and than a multiple of its size after the last time.
COMPACT_BYTES, COMPACT_FACTOR = 1 << 20, 4


class Journal:
    """Records in a file that several processes share. The first record makes the file, and its folder.

    `write` with `compact` replaces the file by fewer records with the same meaning, which readers then apply again.
    """

    # Searches read the file, because to look at it takes microseconds.
    is_followed = is_stale = False
    # True if the last `read_new` began at the first line.
    is_from_start = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = self._before = _START
        self._compact_bytes = 0

    @property
    def has_new(self) -> bool:
        """True if `read_new` may have something to say; cheap enough for every search."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return self._position.bytes > 0
        return found.st_size != self._position.bytes or found.st_ino != self._position.inode

    def read_new(self) -> list[Record]:
        """Return the records since the last call, oldest first.

        Raises:
            UserError: If a record is damaged, or the file has lost records; the next call reads them again.
        """
        position = self._before = self._position
        self.is_from_start = False
        if not self.path.exists():
            if position.bytes:
                raise UserError(f"{self.path}: is gone; restore the file")
            return []
        with self.path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_size == 0:
                raise UserError(f"{self.path}: is empty, and a journal never is; restore or remove the file")
            if found.st_ino != position.inode:
                position = _Position(found.st_ino, 0, 0)
            elif found.st_size < position.bytes:
                raise UserError(f"{self.path}: has lost records; restore the file")
            self.is_from_start = position.bytes == 0
            file.seek(position.bytes)
            records, read = list[Record](), position.bytes
            for line in file:
                # A last line without a line break is being written or was truncated.
                if not line.endswith(b"\n"):
                    break
                records.append(self._parse(line[:-1], position.lines + len(records) + 1))
                read += len(line)
        self._position = _Position(position.inode, read, position.lines + len(records))
        return records

    @staticmethod
    def decode(field: msgspec.Raw) -> Any:
        """Return the value of a field of a record."""
        return msgspec.json.decode(field)

    def read_again(self) -> None:
        """Let the next `read_new` return the records of the last one too."""
        self._position = self._before

    def write(self, record: dict[str, Any], compact: Callable[[], Sequence[dict[str, Any]]] | None = None) -> None:
        """Append a record and return when it is on the disk. The next `read_new` returns it.

        A large journal is replaced by the records of `compact`, which mean the same as all of the file.

        Raises:
            OSError: If the record could not be written; then the file is as before.
        """
        line = _line(record)
        private_folder(self.path.parent)
        with FileLock(f"{self.path}.lock", mode=PRIVATE_FILE):
            if not self.path.exists():
                atomic_write(self.path, line, is_private=True)
                return
            descriptor = os.open(self.path, os.O_RDWR)
            try:
                end = _complete_bytes(descriptor)
                os.ftruncate(descriptor, end)
                try:
                    written = 0
                    while written < len(line):
                        written += os.pwrite(descriptor, line[written:], end + written)
                    os.fsync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, end)
                    raise
            finally:
                os.close(descriptor)
            if compact is not None and end > max(COMPACT_BYTES, COMPACT_FACTOR * self._compact_bytes):
                content = b"".join(map(_line, compact()))
                self._compact_bytes = len(content)
                if content and 2 * len(content) < end:
                    atomic_write(self.path, content, is_private=True)

    def confirm(self) -> None:
        """Do nothing: every search reads the file."""

    wait = wait_confirmed = check = close = confirm

    def _parse(self, line: bytes, number: int) -> Record:
        crc, _, content = line.partition(b" ")
        if crc != b"%08x" % zlib.crc32(content):
            raise UserError(f"{self.path}: line {number} is damaged; restore the file, or remove that line")
        return msgspec.json.decode(content, type=Record)


def _line(record: dict[str, Any]) -> bytes:
    content = msgspec.json.encode(record)
    return b"%08x %s\n" % (zlib.crc32(content), content)


def _complete_bytes(descriptor: int, step: int = 1 << 16) -> int:
    """Return the number of bytes up to the end of the last whole line."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        begin = max(0, end - step)
        at = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        end = begin
    return 0
