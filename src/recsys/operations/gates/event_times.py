"""Gates on when new events are, and on whether they are there once, beside those before them: data before models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from recsys.core.schema import TimeResolution
from recsys.core.types import Float64Array
from recsys.operations.gates.event_window import DAY, EventWindow, Ints, Mask, as_days, share
from recsys.operations.gates.evidence import Evidence
from recsys.operations.gates.verdict import Outcome, at_most, untested

# Seconds of a stretch of the day whose events are counted together, and how many events may be lacking by chance.
BIN = 900
CHANCE = 5.0


@dataclass(frozen=True)
class TimeGaps:
    """No hole in the new events, up to the end of the window, that is much longer than those before.

    An hour that is lost in a long window changes no day's volume much. How long a silence is, is told in hours and in
    the events that the reference has at those times of the day: six hours of the night are usual, an evening is not,
    and a day that is cut off at six lacks its evening. A gap of months says that times are of another unit or another
    clock.

    Attributes:
        longer: times the longest gap of the reference, at most, in hours and in events.
        longest_days: between any two successive events of the data.
        known_days: such as 2026-11-24 (UTC); a gap that touches one of them is known, and passes.
    """

    longer: float
    longest_days: float
    known_days: Sequence[str] = ()

    def __post_init__(self) -> None:
        as_days("gates.gaps.known_days", self.known_days)

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome for all data, and two for the window: hours, and the events that should have been."""
        window = evidence.window
        names = "gap in the window", "silence in the window"
        if not window.has_times:
            yield from (untested(name, "there are no times") for name in names)
            return
        times = np.sort(window.time)
        everywhere = float(np.diff(times).max(initial=0)) / DAY
        yield at_most("longest gap in days", everywhere, self.longest_days, "between two successive events of the data")
        if window.dataset.meta.time_resolution is TimeResolution.DAY:
            yield from (untested(name, "data.time=day: no hours are known") for name in names)
            return
        new, before = np.sort(window.time[window.new]), np.sort(window.time[window.before])
        if len(before) < 100:
            told = f"{len(before)} events of reference, expected 100"
            yield from (untested(name, told) for name in names)
            return
        bounded = np.sort(np.concatenate([[window.begin], new[new < window.end], [window.end]]))
        usual, found = (float(self._gaps(times).max(initial=0)) / 3600 for times in (before, bounded))
        told = f"hours without an event; {usual:.1f} before it"
        yield at_most(names[0], found, self.longer * usual + 1, told)
        usual, found = (
            float(self._gaps(times, _expected(before, window.begin, times)).max(initial=0))
            for times in (before, bounded)
        )
        told = f"events that the times of the longest silence usually have; {usual:.1f} before it"
        yield at_most(names[1], found, self.longer * usual + CHANCE, told)

    def _gaps(self, times: Ints, measured: Float64Array | None = None) -> Float64Array:
        """What lies between successive times that is not known already, in seconds or as they are `measured`."""
        known = as_days("gates.gaps.known_days", self.known_days) * DAY
        begins, ends = times[:-1, None], times[1:, None]
        is_known = ((begins < known + DAY) & (ends > known)).any(axis=1)
        gaps: Float64Array = np.diff(times if measured is None else measured)[~is_known]
        return gaps


@dataclass(frozen=True)
class Clock:
    """No event lies in the future.

    Seconds that are milliseconds, a wrong zone, a clock that is off: such events are the newest forever, and every
    window that is cut by time is wrong with them.

    Attributes:
        ahead_hours: by which clocks may differ.
    """

    ahead_hours: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome."""
        window = evidence.window
        if not window.has_times:
            yield untested("future events", "there are no times")
            return
        share = float((window.time > evidence.now + 3600 * self.ahead_hours).mean())
        yield at_most("future events", share, 0.0, "share of all events")


@dataclass(frozen=True)
class Duplicates:
    """The new events are no copies of each other, more than before.

    An export that ran twice counts every event twice: what was popular on that day becomes twice as popular.

    Attributes:
        more: share of copies (same user, item and time) that may be added.
        busiest: share of the new events that one user may add to what the busiest user had before.
    """

    more: float
    busiest: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome for copies and one for the busiest user."""
        window = evidence.window
        if window.has_times:
            copies = _copies(window)
            found, usual = share(copies, window.new), share(copies, window.before)
            yield at_most("copies", found, usual + self.more, f"share of events, {usual:.4f} before")
        else:
            yield untested("copies", "there are no times")
        found, usual = (_largest_share(window.user[rows]) for rows in (window.new, window.before))
        yield at_most("busiest user", found, usual + self.busiest, f"share of the events, {usual:.4f} before")


def _expected(before: Ints, end: int, times: Ints) -> Float64Array:
    """Events that the reference would have had until each time, if all its days were alike.

    Args:
        before: times of the reference, sorted; it ends at `end`.
        end: in seconds.
        times: to ask for.
    """
    borders = np.arange(0, DAY + 1, BIN)
    counts = np.histogram(before % DAY, borders)[0]
    a_day = np.concatenate([[0.0], np.cumsum(counts)]) * DAY / (end - int(before[0]))
    until: Float64Array = times // DAY * a_day[-1] + np.interp(times % DAY, borders, a_day)
    return until


def _copies(window: EventWindow) -> Mask:
    order = np.lexsort((window.item, window.time, window.user))
    columns = [values[order] for values in (window.user, window.time, window.item)]
    same = np.zeros(len(order), bool)
    same[1:] = np.logical_and.reduce([values[1:] == values[:-1] for values in columns])
    copies = np.zeros(len(order), bool)
    copies[order] = same
    return copies


def _largest_share(users: Ints) -> float:
    return float(np.bincount(users).max(initial=0)) / max(1, len(users))
