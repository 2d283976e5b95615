"""Ids that begin, as they are written, with a prefix."""

from __future__ import annotations

import re

_LEAST, _LARGEST = -(2**63), 2**63 - 1
_NUMBER = re.compile(r"-?[1-9][0-9]*", re.ASCII)


def number_ranges(prefix: str) -> list[tuple[int, int]]:
    """Integers of 64 bits that begin with `prefix` in decimals, as closed ranges: 12, 120 to 129, 1200 to 1299, ..."""
    if prefix == "":
        return [(_LEAST, _LARGEST)]
    if prefix == "-":
        return [(_LEAST, -1)]
    if prefix == "0":
        return [(0, 0)]
    # No more digits than an integer has: the rest would be work for nothing.
    if not _NUMBER.fullmatch(prefix) or len(prefix) > 20:
        return []
    number, ranges = abs(int(prefix)), []
    while number <= (_LARGEST if prefix[0] != "-" else -_LEAST):
        width = len(str(number)) - len(prefix.lstrip("-"))
        first, last = number, number + 10**width - 1
        ranges.append((first, min(last, _LARGEST)) if prefix[0] != "-" else (max(-last, _LEAST), -first))
        number *= 10
    return ranges
