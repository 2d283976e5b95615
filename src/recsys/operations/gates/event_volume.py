"""Gates on the number of new events, in total and for each user, compared with the days before them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from recsys.core.types import Float64Array
from recsys.operations.gates.event_window import DAY, NO_TIMES, EventWindow, Ints, as_days
from recsys.operations.gates.evidence import Evidence
from recsys.operations.gates.verdict import Outcome, at_least, at_most, untested

# A day is compared with the days of the two weeks before it, and with its day of the week in the four weeks before it.
_REFERENCE_DAYS, _WEEKDAY_DAYS = 14, 28
_NO_DAYS: Ints = np.zeros(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class Volume:
    """Stop a candidate if a new day has far fewer or far more events than the days before it.

    The events of such a day are incomplete, lost, duplicated or invalid. The expected volume of a day is the median of
    the two weeks before it, adjusted to its day of the week by the four weeks before it. The bounds are wider if days
    vary much.
    """

    is_data_gate: ClassVar[bool] = True
    min_ratio: float
    max_ratio: float
    max_deviations: float
    min_reference_days: int
    known_days: Sequence[str] = ()

    def __post_init__(self) -> None:
        as_days("gates.volume.known_days", self.known_days)

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome for the smallest day and one for the largest."""
        window = evidence.window
        days, counts = window.days if window.has_times else (_NO_DAYS, _NO_DAYS)
        series = _Series(days, counts, "events")
        yield from _judge_days(("smallest day", "largest day"), window, series=series, least=self.min_ratio, gate=self)


@dataclass(frozen=True, kw_only=True)
class Activity:
    """Stop a candidate if the users of a new day have far fewer or far more events each than before.

    If every other event is lost, each user who comes has half of the usual events. The `volume` gate does not see this
    if the number of users varies from day to day.
    """

    is_data_gate: ClassVar[bool] = True
    max_ratio: float
    max_deviations: float
    min_reference_days: int
    min_users: int
    known_days: Sequence[str] = ()

    def __post_init__(self) -> None:
        as_days("gates.activity.known_days", self.known_days)

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome for the day with the fewest events per user, and one for the day with the most."""
        window = evidence.window
        days, counts = window.days if window.has_times else (_NO_DAYS, _NO_DAYS)
        users = window.users_by_day if window.has_times else _NO_DAYS
        enough = users >= self.min_users
        series = _Series(days[enough], counts[enough] / users[enough], "events per user")
        names = "least active day", "most active day"
        yield from _judge_days(names, window, series=series, least=1 / self.max_ratio, gate=self)


@dataclass(frozen=True)
class _Series:
    """One value for each day, with its unit for messages."""

    days: Ints
    values: Ints | Float64Array
    unit: str


def _judge_days(
    names: tuple[str, str], window: EventWindow, *, series: _Series, least: float, gate: Volume | Activity
) -> Iterable[Outcome]:
    """Yield two outcomes: for the smallest and the largest new day, each compared with its expected value.

    The reference of a new day may contain other new days, so that slow growth or decline passes although the served
    release is old.
    """
    if not window.has_times:
        yield from (untested(name, NO_TIMES) for name in names)
        return
    kept = ~np.isin(series.days, as_days("known_days", gate.known_days))
    series = _Series(series.days[kept], series.values[kept], series.unit)
    days = series.days
    # The day on which the window begins is partly reference and partly new. It is judged whole, as a new day.
    new = np.flatnonzero(days >= window.begin // DAY)
    judged = new[new >= gate.min_reference_days]
    if not len(judged):
        reason = f"{len(days) - len(new)} days of reference, expected {gate.min_reference_days}; {len(new)} new ones"
        yield from (untested(name, reason) for name in names)
        return
    found = [_compare_with_reference(series, day, gate.max_deviations) for day in judged]
    usual, ratios, wide = (np.array(column) for column in zip(*found, strict=True))
    lower, upper = np.minimum(least, 1 / wide), np.maximum(gate.max_ratio, wide)
    for name, compare, limits, position, is_wrong in (
        (names[0], at_least, lower, np.argmin(ratios / np.maximum(lower, 1e-9)), ratios < lower),
        (names[1], at_most, upper, np.argmax(ratios / upper), ratios > upper),
    ):
        dates = [str(np.datetime64(int(day), "D")) for day in days[judged]]
        wrong = [date for date, is_one in zip(dates, is_wrong, strict=True) if is_one]
        fits: dict[str, object] = {"known_days": [*gate.known_days, *wrong]} if wrong else {}
        if wrong and compare is at_most:
            fits["max_ratio"] = float(ratios[is_wrong].max())
        elif wrong:
            low = float(ratios[is_wrong].min())
            fits |= {"min_ratio": low} if isinstance(gate, Volume) else {"max_ratio": 1 / low if low else np.inf}
        reason = f"{dates[position]}, relative to the usual {usual[position]:,.4g} {series.unit}"
        ratio, limit = float(ratios[position]), float(limits[position])
        yield compare(name, ratio, threshold=limit, reason=reason, fits=fits)


def _compare_with_reference(series: _Series, position: int, max_deviations: float) -> tuple[float, float, float]:
    """Return the expected value of a day, its value over that, and the ratio by which days usually differ.

    The expected value is the median of the days before, or that median times the usual ratio of the day of the week to
    its week, whichever is nearer to the value. There are at most four such days of the week, so they may only excuse a
    day.
    """
    days, values = series.days, series.values
    before = values[max(0, position - _REFERENCE_DAYS) : position]
    usual = max(float(np.median(before)), 1.0)
    logs = np.log(np.maximum(before, 0.5) / usual)
    wide = float(np.exp(max_deviations * 1.48 * np.median(np.abs(logs))))
    age = days[position] - days[:position]
    same = np.flatnonzero((age % 7 == 0) & (age <= _WEEKDAY_DAYS))
    to_week = [values[day] / max(float(np.median(values[day - 6 : day + 1])), 1.0) for day in same if day >= 6]
    choices = [usual] if len(to_week) < 2 else [usual, max(usual * float(np.median(to_week)), 1.0)]
    usual = min(choices, key=lambda choice: abs(np.log(max(float(values[position]), 0.5) / choice)))
    return usual, float(values[position]) / usual, wide
