"""Gates on the times of the new events, on copies of events, and on single users with very many events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from recsys.core.schema import TimeResolution
from recsys.core.types import Float64Array
from recsys.operations.gates.event_window import DAY, NO_TIMES, EventWindow, Ints, Mask, as_days, share
from recsys.operations.gates.evidence import Evidence
from recsys.operations.gates.verdict import Outcome, at_most, untested

# Events of a day are counted in bins of this many seconds.
_BIN = 900
# This many expected events may be missing by chance.
_CHANCE = 5.0


@dataclass(frozen=True, kw_only=True)
class TimeGaps:
    """Stop a candidate whose new events have a much longer gap than the events before them.

    An hour that was lost from a long window hardly changes the volume of any day. A gap is measured in hours, and in
    the events that the reference has at those times of the day: six hours at night are normal, six hours in the evening
    are not. The end of the window counts as the end of a gap, so that a day that was cut off is found. A gap of months
    in the data shows that some times have another unit or come from another clock.
    """

    is_data_gate: ClassVar[bool] = True
    max_ratio: float
    max_gap_days: float
    known_days: Sequence[str] = ()

    def __post_init__(self) -> None:
        as_days("gates.gaps.known_days", self.known_days)

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome for the whole data set, and two for the window: hours and expected events."""
        window = evidence.window
        names = "gap in the window", "silence in the window"
        if not window.has_times:
            yield from (untested(name, NO_TIMES) for name in names)
            return
        times = np.sort(window.time)
        everywhere = float(np.diff(times).max(initial=0)) / DAY
        yield at_most(
            "longest gap in days",
            everywhere,
            threshold=self.max_gap_days,
            reason="between two successive events of the data",
            fits={"max_gap_days": everywhere},
        )
        if window.dataset.meta.time_resolution is TimeResolution.DAY:
            yield from (untested(name, "data.time=day: times have no hours") for name in names)
            return
        new, before = np.sort(window.time[window.new]), np.sort(window.time[window.before])
        if len(before) < 100:
            reason = f"{len(before)} events in the reference, expected 100"
            yield from (untested(name, reason) for name in names)
            return
        bounded = np.sort(np.concatenate([[window.begin], new[new < window.end], [window.end]]))
        usual, found = (float(self._gaps(times).max(initial=0)) / 3600 for times in (before, bounded))
        reason = f"hours without an event; {usual:.1f} before"
        fits = {"max_ratio": (found - 1) / usual} if usual else {}
        yield at_most(names[0], found, threshold=self.max_ratio * usual + 1, reason=reason, fits=fits)
        usual, found = (
            float(self._gaps(times, _expected(times, before, window.begin)).max(initial=0))
            for times in (before, bounded)
        )
        reason = f"events that usually fall into the longest gap; {usual:.1f} before"
        fits = {"max_ratio": (found - _CHANCE) / usual} if usual else {}
        yield at_most(names[1], found, threshold=self.max_ratio * usual + _CHANCE, reason=reason, fits=fits)

    def _gaps(self, times: Ints, measured: Float64Array | None = None) -> Float64Array:
        """Return the gaps between successive times that touch no known day, in seconds or in units of `measured`."""
        known = as_days("gates.gaps.known_days", self.known_days) * DAY
        begins, ends = times[:-1, None], times[1:, None]
        is_known = ((begins < known + DAY) & (ends > known)).any(axis=1)
        gaps: Float64Array = np.diff(times if measured is None else measured)[~is_known]
        return gaps


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Stop a candidate whose data has events in the future.

    Milliseconds read as seconds, a wrong time zone or a wrong clock produce such events. They remain the newest events
    for years, so every window that ends at the newest event is wrong.
    """

    is_data_gate: ClassVar[bool] = True
    max_ahead_hours: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome."""
        window = evidence.window
        if not window.has_times:
            yield untested("future events", NO_TIMES)
            return
        found = float((window.time > evidence.now + 3600 * self.max_ahead_hours).mean())
        fits = {"max_ahead_hours": (int(window.time.max(initial=0)) - evidence.now) / 3600}
        yield at_most("future events", found, threshold=0.0, reason="share of all events", fits=fits)


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Stop a candidate whose new events are copies of each other, or come from one user, more often than before.

    An export that ran twice counts every event twice, which doubles the popularity of the items of that day. One user
    with very many events is a bot or a default user id.
    """

    is_data_gate: ClassVar[bool] = True
    max_increase: float
    max_busiest_user_increase: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome for copies and one for the busiest user."""
        window = evidence.window
        if window.has_times:
            copies = _copies(window)
            found, usual = share(copies, window.new), share(copies, window.before)
            reason, fits = f"share of events, {usual:.4f} before", {"max_increase": found - usual}
            yield at_most("copies", found, threshold=usual + self.max_increase, reason=reason, fits=fits)
        else:
            yield untested("copies", NO_TIMES)
        found, usual = (_largest_share(window.user[rows]) for rows in (window.new, window.before))
        bound = usual + self.max_busiest_user_increase
        reason, fits = f"share of the events, {usual:.4f} before", {"max_busiest_user_increase": found - usual}
        yield at_most("busiest user", found, threshold=bound, reason=reason, fits=fits)


def _expected(times: Ints, before: Ints, end: int) -> Float64Array:
    """Return the events that the reference (`before`, sorted) would have until each time if all days were alike."""
    borders = np.arange(0, DAY + 1, _BIN)
    counts = np.histogram(before % DAY, borders)[0]
    per_day = np.concatenate([[0.0], np.cumsum(counts)]) * DAY / (end - int(before[0]))
    until: Float64Array = times // DAY * per_day[-1] + np.interp(times % DAY, borders, per_day)
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
