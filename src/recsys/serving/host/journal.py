"""Journal of the item updates of a host: one record per line, durable before it is acknowledged. Imports no torch.

A line is `CRC32 JSON`. A record exists once its line break is written. A line that a crash cut off was never
acknowledged, and the next writer removes it. The processes of one host share the file, and each reads the records of
the others. The file is appended to in place, so a write costs the same for every length of the journal.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

from filelock import FileLock

from recsys.core.errors import UserError
from recsys.core.io import sync


class Journal:
    """Records of one host. The first record makes the file, and its folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_bytes, self._read_lines = 0, 0

    @property
    def has_new(self) -> bool:
        """True if there may be records that `read_new` has not returned; cheap enough for every search."""
        try:
            return os.stat(self.path).st_size > self._read_bytes
        except FileNotFoundError:
            return False

    def read_new(self) -> list[dict[str, Any]]:
        """Return the records since the last call, oldest first; raise `UserError` at a damaged one."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._read_bytes)
            content = file.read()
        # A last line without a line break is being written or was truncated.
        content = content[: content.rfind(b"\n") + 1]
        records = [self._parse(line, number) for number, line in enumerate(content.splitlines(), self._read_lines + 1)]
        self._read_bytes += len(content)
        self._read_lines += len(records)
        return records

    def write(self, record: dict[str, Any]) -> None:
        """Append a record and return when it is on the disk. The next `read_new` returns it.

        Raises:
            OSError: If the record could not be written; then the file is as before.
        """
        line = json.dumps(record, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(line), line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            is_new = not self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
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
            if is_new:
                sync(self.path.parent)

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        crc, _, content = line.partition(b" ")
        if crc != b"%08x" % zlib.crc32(content):
            raise UserError(f"{self.path}: line {number} is damaged; restore the file, or remove that line")
        record: dict[str, Any] = json.loads(content)
        return record


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
