"""Memory that opening a release may take. Imports no torch."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recsys.release.manifest import Manifest
from recsys.release.parts import PARTS

_STATUS = Path("/proc/self/status")
_GIGABYTE = 1 << 30
# Libraries, threads and small files; copies of files; tables and ids in memory for a byte of Parquet. Arrow reserves
# memory in gigabytes, of which large tables need a second one.
_LEAST, _COPIES, _GROWTH, _LARGE = 640 << 20, 3, 16, 32 << 20


def memory_of(manifest: Manifest) -> int:
    """Return the most bytes that a sound release takes when it is opened, in proportion to its files."""
    # The parts of hosts with `shard=I/N` repeat the whole.
    files = {name: entry.bytes for name, entry in manifest.files.items() if not name.startswith(PARTS)}
    tables = sum(size for name, size in files.items() if name.endswith(".parquet"))
    others = sum(files.values()) - tables
    return _LEAST + _COPIES * others + _GROWTH * tables + (_GIGABYTE if tables > _LARGE else 0)


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """Let allocations fail in the block once the process holds `more` bytes than at its begin.

    The limit is that of the whole process, so it is not for servers. Where there is no such limit it does nothing.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    held = _held()
    limit = more + (held or 0)
    if held is None or (soft != resource.RLIM_INFINITY and soft < limit):
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _held() -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmData")), None)
