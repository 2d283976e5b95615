"""Gates on the new events beside those before them: the data are looked at before the model is believed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from recsys.data.columns import Column, Ragged
from recsys.retraining.evidence import Evidence, action_columns
from recsys.retraining.verdict import Outcome, at_least, at_most, untested
from recsys.retraining.window import DAY, EventWindow, Floats, Ints, Mask
from recsys.schema import MISSING


@dataclass(frozen=True)
class Volume:
    """Every new day has about as many events as the days before it.

    A day that is cut off, lost, doubled or invented. What is usual is what the days before show: their median, and
    wider bounds where they scatter by themselves.

    Attributes:
        least: share of the median day, at least.
        most: times the median day, at most.
        deviations: a day is usual, too, within so many typical deviations (1.48 times the median one) of the logarithm.
        fewest_days: of reference; with fewer nothing is said.
    """

    least: float
    most: float
    deviations: float
    fewest_days: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome for the smallest day and one for the largest."""
        window = evidence.window
        names = "smallest day", "largest day"
        if not window.has_times:
            yield from (untested(name, "there are no times") for name in names)
            return
        days, counts = window.days
        is_new = days >= window.begin // DAY
        # The day on which the window begins is half of the reference and half new: it is judged whole, as a new one.
        before = counts[~is_new]
        if len(before) < self.fewest_days or not is_new.any():
            told = f"{len(before)} days of reference, expected {self.fewest_days}"
            yield from (untested(name, told) for name in names)
            return
        usual = max(float(np.median(before)), 1.0)
        logs = np.log(np.maximum(before, 0.5) / usual)
        wide = np.exp(self.deviations * 1.48 * float(np.median(np.abs(logs))))
        new, told = counts[is_new], f"relative to the median of {len(before)} days before, {usual:,.0f} events"
        yield at_least(names[0], float(new.min()) / usual, min(self.least, 1 / wide), told)
        yield at_most(names[1], float(new.max()) / usual, max(self.most, wide), told)


@dataclass(frozen=True)
class TimeGaps:
    """No hole in the new events, up to the end of the window, that is much longer than those before.

    An hour that is lost in a long window changes no day's volume much. A gap of months says that times are of another
    unit or another clock.

    Attributes:
        longer: times the longest gap of the reference, at most.
        longest_days: between any two successive events of the data.
    """

    longer: float
    longest_days: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome for the window and one for all data."""
        window = evidence.window
        if not window.has_times:
            yield untested("gap in the window", "there are no times")
            return
        times = np.sort(window.time)
        everywhere = float(np.diff(times).max(initial=0)) / DAY
        yield at_most("longest gap in days", everywhere, self.longest_days, "between two successive events of the data")
        if window.dataset.meta.time == "day":
            yield untested("gap in the window", "data.time=day: no hours are known")
            return
        new, before = np.sort(window.time[window.new]), np.sort(window.time[window.before])
        if len(before) < 100:
            yield untested("gap in the window", f"{len(before)} events of reference, expected 100")
            return
        usual = float(np.diff(before).max()) / 3600
        bounded = np.concatenate([[window.begin], new[new < window.end], [window.end]])
        found = float(np.diff(np.sort(bounded)).max()) / 3600
        told = f"hours without an event; {usual:.1f} before it"
        yield at_most("gap in the window", found, self.longer * usual + 1, told)


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
class Nulls:
    """Features of the new events, of their items and of their users are filled as before.

    A column that a producer stopped writing is null from one day on; a tower reads it as missing, and works worse
    without a word.

    Attributes:
        more: share of nulls that may be added.
    """

    more: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome for each feature."""
        window = evidence.window
        for feature in window.dataset.schema.features:
            missing = _missing(window.dataset.columns[feature.key])
            rows = {"items": window.item, "users": window.user}.get(feature.owner)
            values = missing if rows is None else missing[rows]
            found, usual = _mean(values, window.new), _mean(values, window.before)
            yield at_most(feature.key, found, usual + self.more, f"share of nulls, {usual:.3f} before")


@dataclass(frozen=True)
class Unseen:
    """The new events have about as many new items and new users as the days before had.

    Ids that are written another way, or of another system, look like news.

    Attributes:
        more: share of new ones that may be added.
        times: the usual share, at most, where this is more.
    """

    more: float
    times: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome for items and one for users."""
        window = evidence.window
        for name, values in (("new items", window.item), ("new users", window.user)):
            if not window.has_times:
                yield untested(name, "there are no times")
                continue
            found, usual = _news(window, values)
            if usual is None:
                yield untested(name, "no events before the reference", found)
                continue
            told = f"share of events, {usual:.3f} in as long a time before"
            yield at_most(name, found, max(usual + self.more, self.times * usual), told)


def _news(window: EventWindow, values: Ints) -> tuple[float, float | None]:
    """Share of the new events with a value that no earlier event has; and the same of as long a time before them."""
    first = np.full(int(values.max(initial=0)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, values, window.time)
    found = float((first[values[window.new]] >= window.begin).mean()) if window.new.any() else 0.0
    start = window.begin - (window.end - window.begin)
    earlier = (window.time >= start) & (window.time < window.begin)
    if not earlier.any() or int(window.time.min()) >= start:
        return found, None
    return found, float((first[values[earlier]] >= start).mean())


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
            found, usual = _mean(copies, window.new), _mean(copies, window.before)
            yield at_most("copies", found, usual + self.more, f"share of events, {usual:.4f} before")
        else:
            yield untested("copies", "there are no times")
        found, usual = (_largest_share(window.user[rows]) for rows in (window.new, window.before))
        yield at_most("busiest user", found, usual + self.busiest, f"share of the events, {usual:.4f} before")


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


@dataclass(frozen=True)
class LabelShift:
    """Types of action, and other categories of few values, are as frequent as before.

    Saves that turn into clicks overnight are a change of the logging, not of people; targets that count by type of
    action count something else from then on.

    Attributes:
        most: total variation distance between the shares, at most.
    """

    most: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome for each column."""
        window = evidence.window
        for feature in action_columns(window.dataset):
            codes = np.asarray(window.dataset.columns[feature.key].values)
            # What is missing is the business of another gate.
            shares = [_shares(codes[rows & (codes != MISSING)], feature.size) for rows in (window.new, window.before)]
            distance = 0.5 * float(np.abs(shares[0] - shares[1]).sum())
            yield at_most(feature.key, distance, self.most, "total variation distance to the reference")


def _shares(codes: Ints, size: int) -> Floats:
    return np.asarray(np.bincount(codes, minlength=size) / max(1, len(codes)))


@dataclass(frozen=True)
class ItemShift:
    """The new events are spread over items about as the days before are over the days before them.

    Ids that are mixed up keep the number of items, of users and of events; what is popular changes at a stroke.

    Attributes:
        more: distance (total variation of the shares of the most popular items) that may be added.
        items: the most popular ones that are looked at; the others are one.
    """

    more: float
    items: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome."""
        window = evidence.window
        if not window.has_times:
            yield untested("popular items", "there are no times")
            return
        length = window.end - window.begin
        stretches = [
            (window.time >= window.begin - back * length) & (window.time < window.begin - (back - 1) * length)
            for back in (1, 2)
        ]
        if not window.new.any() or min(map(np.count_nonzero, stretches)) < 100:
            yield untested("popular items", "fewer than 100 events in as long a time before")
            return
        found, usual = self._distance(window, window.new, stretches[0]), self._distance(window, *stretches)
        yield at_most("popular items", found, usual + self.more, f"total variation distance, {usual:.3f} before")

    def _distance(self, window: EventWindow, new: Mask, before: Mask) -> float:
        counts = [np.bincount(window.item[rows], minlength=window.dataset.num_items + 1) for rows in (new, before)]
        top = np.argsort(-counts[1], kind="stable")[: self.items]
        shares = [count[top] / max(1, count.sum()) for count in counts]
        rest = abs(float(shares[0].sum() - shares[1].sum()))
        return 0.5 * (float(np.abs(shares[0] - shares[1]).sum()) + rest)


def _missing(column: Column) -> Mask:
    if isinstance(column, Ragged):
        return np.asarray(np.diff(column.offsets) == 0)
    values = np.asarray(column.values)
    if values.dtype.kind != "f":
        return np.asarray(values == MISSING)
    missing = np.isnan(values)
    return missing if missing.ndim == 1 else np.asarray(missing.all(1))


def _mean(values: Mask, rows: Mask) -> float:
    return float(values[rows].mean()) if rows.any() else 0.0
