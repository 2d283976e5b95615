"""Search of files for byte patterns, which proves that a forgotten user is gone. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

from recsys.serving.events.event_store import Searched

# Shorter patterns are found in any file, so they prove nothing.
LEAST_BYTES = 5
_CHUNK_BYTES = 4 << 20
# Number of patterns up to which each is searched on its own.
_FEW = 16


def useful(patterns: Iterable[bytes]) -> frozenset[bytes]:
    """Return the patterns that are long enough to be searched."""
    return frozenset(pattern for pattern in patterns if len(pattern) >= LEAST_BYTES)


def count_in_file(path: Path, patterns: Collection[bytes]) -> int:
    """Return how often the patterns occur in a file; 0 if there is none."""
    overlap = max(map(len, patterns), default=1) - 1
    total, kept = 0, b""
    try:
        with path.open("rb") as file:
            while part := file.read(_CHUNK_BYTES):
                content = kept + part
                # What lies completely in the kept bytes was counted before.
                total += count(content, patterns) - count(kept, patterns)
                kept = content[-overlap:] if overlap else b""
    except FileNotFoundError:
        return 0
    return total


def search_file(path: Path, patterns: Collection[bytes]) -> Searched:
    """Return how often the patterns occur in a file."""
    size = path.stat().st_size if path.exists() else 0
    return Searched(str(path), size, count_in_file(path, patterns))


def count(content: bytes, patterns: Collection[bytes]) -> int:
    """Return how often the patterns occur in some bytes."""
    if len(patterns) <= _FEW or len(content) < 1024:
        return sum(content.count(pattern) for pattern in patterns)
    return sum(1 for _ in _places(content, patterns))


def _places(content: bytes, patterns: Collection[bytes]) -> Iterator[int]:
    """Yield the places where a pattern begins: candidates share its first bytes."""
    by_prefix: dict[int, list[bytes]] = {}
    for pattern in patterns:
        by_prefix.setdefault(int.from_bytes(pattern[:LEAST_BYTES], "little"), []).append(pattern)
    found = np.frombuffer(content, np.uint8).astype(np.uint64)
    size = len(found) - LEAST_BYTES + 1
    keys = np.zeros(max(size, 0), np.uint64)
    for place in range(LEAST_BYTES):
        keys |= found[place : place + size] << np.uint64(8 * place)
    for begin in np.flatnonzero(np.isin(keys, np.fromiter(by_prefix, np.uint64))).tolist():
        for pattern in by_prefix[int(keys[begin])]:
            if content.startswith(pattern, begin):
                yield begin
