"""Times of the events of a request's history. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.core.errors import UserError
from recsys.core.time_units import LATEST, NAMES, PER_SECOND, moment_text, unit_of


def event_seconds(histories: Sequence[Sequence[Mapping[str, Any]]]) -> npt.NDArray[np.int64]:
    """Return the times in seconds, int64 [T], of the events of all histories, each oldest first.

    A `timestamp` is a whole number of seconds, a date or a time (also as ISO 8601; without a zone it is UTC). An event
    without one has the time of the event before it; events at the beginning have that of the first event with a time.
    In a history without times all events have time 0.

    Raises:
        UserError: If a timestamp has another form.
    """
    times = [_of_history([event.get("timestamp") for event in events]) for events in histories]
    return np.concatenate([np.zeros(0, np.int64), *times])


def _of_history(timestamps: Sequence[Any]) -> npt.NDArray[np.int64]:
    seconds = [None if value is None else to_seconds(value) for value in timestamps]
    known = [at for at, value in enumerate(seconds) if value is not None]
    if not known:
        return np.zeros(len(seconds), np.int64)
    has_time = np.zeros(len(seconds), bool)
    has_time[known] = True
    filled = np.maximum.accumulate(np.where(has_time, np.arange(len(seconds)), known[0]))
    return np.array([seconds[at] for at in filled], np.int64)


def to_seconds(value: Any, place: str = "history.timestamp") -> int:
    """Return a timestamp in whole seconds, rounded down; `event_seconds` lists the forms, `place` is for messages.

    Times beyond the year 9999, as milliseconds are, are refused.
    """
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, date):
            moment = value if isinstance(value, datetime) else datetime.combine(value, time())
            value = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, bool) or not math.isfinite(value):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{place}: found {value!r}, expected integer seconds, a date or a time (ISO 8601)") from error
    check_seconds(value, place)
    return int(value // 1)


def check_seconds(value: float, place: str) -> None:
    """Refuse a time beyond the year 9999: such a number has another unit.

    Raises:
        UserError: If the time is beyond it. The message names the unit that the number seems to have.
    """
    if abs(value) > LATEST:
        unit = unit_of(value)
        raise UserError(
            f"{place}: found {value!r:.60}, expected seconds since 1970; as {NAMES[unit]} it is "
            f"{moment_text(value, unit)}, so divide it by {PER_SECOND[unit]}"
        )
