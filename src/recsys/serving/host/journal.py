"""A file that remembers what a host was told: one record a line, durable before it is acknowledged. Imports no torch.

A line is `CRC32 JSON`. A record counts from its line break on: what a crash cut off is no record, was never
acknowledged, and is removed by the next one that is written. Several processes of one host share the file; each reads
what the others wrote.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

from filelock import FileLock

from recsys.core.errors import UserError


class Journal:
    """Records of one host.

    Args:
        path: of the file; made, with its folder, by the first record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_bytes, self._read_lines = 0, 0

    @property
    def has_news(self) -> bool:
        """Whether there may be records that `news` has not given yet; cheap enough to ask before every search."""
        try:
            return os.stat(self.path).st_size > self._read_bytes
        except FileNotFoundError:
            return False

    def news(self) -> list[dict[str, Any]]:
        """Records since the last call, oldest first.

        Raises:
            UserError: a record is damaged; nothing behind it is read.
        """
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._read_bytes)
            content = file.read()
        # What has no line break yet is being written, or was cut off.
        content = content[: content.rfind(b"\n") + 1]
        records = [self._parse(line, number) for number, line in enumerate(content.splitlines(), self._read_lines + 1)]
        self._read_bytes += len(content)
        self._read_lines += len(records)
        return records

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; returns when it is on the disk. It comes back with the next `news`.

        Raises:
            OSError: it could not be written; then it is not there.
        """
        line = json.dumps(record, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(line), line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            is_new = not self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                end = _whole(descriptor)
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
                folder = os.open(self.path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        crc, _, content = line.partition(b" ")
        if crc != b"%08x" % zlib.crc32(content):
            raise UserError(f"{self.path}: line {number} is damaged; restore the file, or remove that line")
        record: dict[str, Any] = json.loads(content)
        return record


def _whole(descriptor: int, step: int = 1 << 16) -> int:
    """Bytes up to the end of the last whole line."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        begin = max(0, end - step)
        at = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        end = begin
    return 0
