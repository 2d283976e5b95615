"""Ranges of integer ids whose decimal form begins with a prefix."""

from __future__ import annotations

import re

_SMALLEST, _LARGEST = -(2**63), 2**63 - 1
_NUMBER = re.compile(r"-?[1-9][0-9]*", re.ASCII)


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
