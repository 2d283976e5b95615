"""Units of timestamps that are numbers. A moment of the last decades shows its unit by its size."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

TimeUnit = Literal["s", "ms", "us", "ns"]

PER_SECOND: dict[str, int] = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
# The last second of the year 9999.
LATEST = 253_402_300_799
# Numbers of seconds from 1990 to 2100.
_CLEAR = (631_152_000, 4_102_444_800)


def unit_of(value: float) -> TimeUnit:
    """Return the coarsest unit in which a number since 1970 lies before the year 10000."""
    units: tuple[TimeUnit, ...] = ("s", "ms", "us")
    return next((unit for unit in units if abs(value) <= LATEST * PER_SECOND[unit]), "ns")


def clear_unit(value: float) -> TimeUnit | None:
    """Return the unit in which a number is a moment from 1990 to 2100, or None if there is no such unit."""
    unit = unit_of(value)
    low, high = (bound * PER_SECOND[unit] for bound in _CLEAR)
    return unit if low <= value <= high else None


def moment_text(value: float, unit: TimeUnit) -> str:
    """Return a number since 1970 as ISO 8601, in UTC."""
    try:
        moment = datetime(1970, 1, 1) + timedelta(seconds=value / PER_SECOND[unit])
    except OverflowError:
        return "beyond the year 9999"
    return moment.isoformat(timespec="seconds")
