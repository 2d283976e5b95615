"""The time for which an index is built."""

from __future__ import annotations

from dataclasses import dataclass

DAY = 86_400


@dataclass(frozen=True)
class IndexTime:
    """The time for which an index is built: item biases are those of the days that it serves.

    Attributes:
        now: second since 1970 at which the index begins to serve. Events before it are counted.
        horizon_days: days that it serves. Ages are averaged over them.
    """

    now: int
    horizon_days: float
