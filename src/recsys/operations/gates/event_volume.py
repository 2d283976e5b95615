"""Gates on how many new events there are, altogether and of each user, beside the days before: data before models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from recsys.core.types import Float64Array
from recsys.operations.gates.event_window import DAY, EventWindow, Ints, as_days
from recsys.operations.gates.evidence import Evidence
from recsys.operations.gates.verdict import Outcome, at_least, at_most, untested

# Days before a day that it is compared with, at most; and those of them that are of its day of the week.
_REFERENCE, _WEEKS = 14, 28


@dataclass(frozen=True)
class Volume:
    """Every new day has about as many events as the days before it.

    A day that is cut off, lost, doubled or invented. What is usual is what the two weeks before it show, and
    its day of the week in the four before it: medians, and wider bounds where days scatter by themselves.

    Attributes:
        least: share of the median day, at least.
        most: times the median day, at most.
        deviations: a day is usual, too, within so many typical deviations (1.48 times the median one) of the logarithm.
        fewest_days: of reference; with fewer nothing is said.
        known_days: such as 2026-11-24 (UTC), unusual for a reason that is known: they are neither judged nor reference.
    """

    least: float
    most: float
    deviations: float
    fewest_days: int
    known_days: Sequence[str] = ()

    def __post_init__(self) -> None:
        as_days("gates.volume.known_days", self.known_days)

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome for the smallest day and one for the largest."""
        window = evidence.window
        names = "smallest day", "largest day"
        if not window.has_times:
            yield from (untested(name, "there are no times") for name in names)
            return
        days, counts = window.days
        bounds = self.least, self.most, self.deviations, self.fewest_days
        yield from _beside_usual(
            names, window, days, counts, as_days("gates.volume.known_days", self.known_days), "events", *bounds
        )


@dataclass(frozen=True)
class Activity:
    """Users who come on a new day do about as much there as on the days before it.

    Where every other event is lost, whoever comes has half of them: days that differ in how many come hide that from
    their volume, and not from this.

    Attributes:
        times: the median day's events per user, at most, and one part in so many of them, at least.
        deviations: usual, too, is what lies within so many typical deviations; as of `Volume`.
        fewest_days: of reference; with fewer nothing is said.
        fewest_users: of a day, for it to be judged or be reference.
        known_days: neither judged nor reference; as of `Volume`.
    """

    times: float
    deviations: float
    fewest_days: int
    fewest_users: int
    known_days: Sequence[str] = ()

    def __post_init__(self) -> None:
        as_days("gates.activity.known_days", self.known_days)

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome for the day with the fewest events per user, and one for that with the most."""
        window = evidence.window
        names = "least active day", "most active day"
        if not window.has_times:
            yield from (untested(name, "there are no times") for name in names)
            return
        days, counts = window.days
        users = window.users_by_day
        enough = users >= self.fewest_users
        days, means = days[enough], counts[enough] / users[enough]
        bounds = 1 / self.times, self.times, self.deviations, self.fewest_days
        known = as_days("gates.activity.known_days", self.known_days)
        yield from _beside_usual(names, window, days, means, known, "events per user", *bounds)


def _beside_usual(
    names: tuple[str, str],
    window: EventWindow,
    days: Ints,
    values: Ints | Float64Array,
    known: Ints,
    unit: str,
    least: float,
    most: float,
    deviations: float,
    fewest_days: int,
) -> Iterable[Outcome]:
    """Two outcomes: the smallest and the largest new day, each beside what is usual on it.

    Days before a new day are new ones, too, where the served release is old: what grows or falls slowly is usual.

    Args:
        names: of the two.
        window: that says which days are new.
        days: of the values.
        values: of the days.
        known: days that are left out.
        unit: of the values, for people.
        least: times the median, at least.
        most: times the median, at most.
        deviations: typical ones of the logarithm (1.48 times the median one) that are usual, too.
        fewest_days: before a day; one with fewer is not judged.
    """
    is_known = np.isin(days, known)
    days, values = days[~is_known], values[~is_known]
    # The day on which the window begins is half of the reference and half new: it is judged whole, as a new one.
    new = np.flatnonzero(days >= window.begin // DAY)
    judged = new[new >= fewest_days]
    if not len(judged):
        told = f"{len(days) - len(new)} days of reference, expected {fewest_days}; {len(new)} new ones"
        yield from (untested(name, told) for name in names)
        return
    found = [_beside(values, days, day, deviations) for day in judged]
    usual, ratios, wide = (np.array(column) for column in zip(*found, strict=True))
    lower, upper = np.minimum(least, 1 / wide), np.maximum(most, wide)
    for name, compare, bounds, place in (
        (names[0], at_least, lower, np.argmin(ratios / lower)),
        (names[1], at_most, upper, np.argmax(ratios / upper)),
    ):
        day = np.datetime64(int(days[judged[place]]), "D")
        told = f"{day}, relative to what is usual, {usual[place]:,.4g} {unit}"
        yield compare(name, float(ratios[place]), float(bounds[place]), told)


def _beside(values: Ints | Float64Array, days: Ints, place: int, deviations: float) -> tuple[float, float, float]:
    """What is usual on a day, its value relative to that, and the factor by which days differ.

    Usual is the median of the days before it, or that times what its day of the week is beside its week, whichever is
    nearer: little is known of one day of the week, so that it excuses, and accuses nobody.
    """
    before = values[max(0, place - _REFERENCE) : place]
    usual = max(float(np.median(before)), 1.0)
    logs = np.log(np.maximum(before, 0.5) / usual)
    wide = float(np.exp(deviations * 1.48 * np.median(np.abs(logs))))
    age = days[place] - days[:place]
    same = np.flatnonzero((age % 7 == 0) & (age <= _WEEKS))
    beside_week = [values[day] / max(float(np.median(values[day - 6 : day + 1])), 1.0) for day in same if day >= 6]
    choices = [usual] if len(beside_week) < 2 else [usual, max(usual * float(np.median(beside_week)), 1.0)]
    usual = min(choices, key=lambda choice: abs(np.log(max(float(values[place]), 0.5) / choice)))
    return usual, float(values[place]) / usual, wide
