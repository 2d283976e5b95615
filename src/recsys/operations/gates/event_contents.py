"""Gates on what the new events are of: features, items, users and types of action, beside those before them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from recsys.core.columns import Column, Ragged
from recsys.core.schema import MISSING
from recsys.core.types import Float64Array
from recsys.operations.gates.event_window import EventWindow, Ints, Mask, share
from recsys.operations.gates.evidence import Evidence, action_columns
from recsys.operations.gates.verdict import Outcome, at_least, at_most, untested

# Events that are expected of an item, for none to be no chance: one in 150, if they come independently.
_CERTAIN = 5


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
        """One outcome for each feature of the events, and for each column of the catalogue beside the served one."""
        window = evidence.window
        for feature in window.dataset.schema.features:
            missing = _missing(window.dataset.columns[feature.key])
            rows = {"items": window.item, "users": window.user}.get(feature.owner)
            values = missing if rows is None else missing[rows]
            found, usual = share(values, window.new), share(values, window.before)
            yield at_most(feature.key, found, usual + self.more, f"share of nulls, {usual:.3f} before")
        ours, theirs = (side.retriever for side in (evidence.candidate, evidence.served))
        for name in theirs.items.column_names[2:]:
            if name not in ours.items.column_names:
                yield Outcome(f"catalogue {name}", 1.0, 0.0, "fail", "the items have no such column any more")
                continue
            found, usual = (side.items[name].null_count / max(1, len(side.items)) for side in (ours, theirs))
            yield at_most(f"catalogue {name}", found, usual + self.more, f"share of nulls, {usual:.3f} in the served")
        lost = {f.key for f in theirs.schema.features} - {f.key for f in ours.schema.features}
        told = f"gone: {', '.join(sorted(lost))}" if lost else "all that the served release has"
        yield at_most("features lost", float(len(lost)), 0.0, told)


@dataclass(frozen=True)
class Unseen:
    """The new events have about as many new items and new users as the days before had.

    Ids that are written another way, or of another system, look like news; and where whoever joins is lost, nobody is
    new. New items may come in batches, so that none is no news.

    Attributes:
        more: share of new ones that may be added.
        times: the usual share, at most, where this is more.
        least: of the usual number of new users, at least.
        fewest: usual new users, for too few of them to be told from chance.
    """

    more: float
    times: float
    least: float
    fewest: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome for items and two for users."""
        window = evidence.window
        names = "new items", "new users", "users who are new"
        if not window.has_times:
            yield from (untested(name, "there are no times") for name in names)
            return
        news = {names[0]: _news(window, window.item), names[1]: _news(window, window.user)}
        for name, (found, usual) in news.items():
            if usual is None:
                yield untested(name, "no events before the reference", found.share)
                continue
            told = f"share of events, {usual.share:.3f} in as long a time before"
            yield at_most(name, found.share, max(usual.share + self.more, self.times * usual.share), told)
        found, usual = news[names[1]]
        if usual is None or usual.number < self.fewest:
            yield untested(names[2], f"{usual.number if usual else 0} in as long a time before, expected {self.fewest}")
            return
        told = f"{usual.number} in as long a time before"
        yield at_least(names[2], float(found.number), self.least * usual.number, told)


class _New(NamedTuple):
    share: float
    number: int


def _news(window: EventWindow, values: Ints) -> tuple[_New, _New | None]:
    """Share of the new events with a value that no earlier event has, and how many such values; and of the time before.

    The time before is as long as that of the new events.
    """
    first = np.full(int(values.max(initial=0)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, values, window.time)

    def count(events: Mask, since: int, until: int) -> _New:
        number = int(np.count_nonzero((first >= since) & (first < until)))
        return _New(float((first[values[events]] >= since).mean()) if events.any() else 0.0, number)

    found = count(window.new, window.begin, np.iinfo(np.int64).max)
    start = window.begin - (window.end - window.begin)
    earlier = (window.time >= start) & (window.time < window.begin)
    if not earlier.any() or int(window.time.min()) >= start:
        return found, None
    return found, count(earlier, start, window.begin)


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


def _shares(codes: Ints, size: int) -> Float64Array:
    return np.asarray(np.bincount(codes, minlength=size) / max(1, len(codes)))


@dataclass(frozen=True)
class ItemShift:
    """The new events are spread over items about as the days before are over the days before them.

    Ids that are mixed up keep the number of items, of users and of events; what is popular changes at a stroke. A few
    items that a campaign, a bot or a default value puts everywhere are less than all that changes by chance, and much
    more than what others rise by.

    Attributes:
        more: distance (total variation of the shares of the most popular items) that may be added.
        items: the most popular ones that are looked at; the others are one.
        risen: share of the events that the items that rose most may have won, beyond what such items won before.
        risen_items: how many of them.
        vanished: share of the events of items that must have some, that those without any may have had, beyond what
            such items had before.
        fewest: items that must have some (five are expected of each), for this to be told.
    """

    more: float
    items: int
    risen: float
    risen_items: int
    vanished: float
    fewest: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome each for what was popular, what has risen, and what is gone."""
        window = evidence.window
        names = "popular items", "risen items", "vanished items"
        if not window.has_times:
            yield from (untested(name, "there are no times") for name in names)
            return
        length = window.end - window.begin
        stretches = [
            (window.time >= window.begin - back * length) & (window.time < window.begin - (back - 1) * length)
            for back in (1, 2)
        ]
        if not window.new.any() or min(map(np.count_nonzero, stretches)) < 100:
            yield from (untested(name, "fewer than 100 events in as long a time before") for name in names)
            return
        counts = [
            np.bincount(window.item[rows], minlength=window.dataset.num_items + 1) for rows in (window.new, *stretches)
        ]
        new, before, earlier = (count / count.sum() for count in counts)
        found, usual = self._distance(new, before), self._distance(before, earlier)
        yield at_most(names[0], found, usual + self.more, f"total variation distance, {usual:.3f} before")
        found, usual = self._risen(new, before), self._risen(before, earlier)
        told = f"share of the events that {self.risen_items} items won, {usual:.3f} before"
        yield at_most(names[1], found, usual + self.risen, told)
        found, must = self._vanished(counts[0], before)
        usual, must_before = self._vanished(counts[1], earlier)
        if min(must, must_before) < self.fewest:
            yield untested(names[2], f"{must} items that must have events, expected {self.fewest}", found)
            return
        told = f"share of what {must} items with events had before, {usual:.3f} before"
        yield at_most(names[2], found, usual + self.vanished, told)

    def _distance(self, new: Float64Array, before: Float64Array) -> float:
        top = np.argsort(-before, kind="stable")[: self.items]
        rest = abs(float(new[top].sum() - before[top].sum()))
        return 0.5 * (float(np.abs(new[top] - before[top]).sum()) + rest)

    def _vanished(self, counts: Ints, before: Float64Array) -> tuple[float, int]:
        must = before * counts.sum() >= _CERTAIN
        return float(before[must & (counts == 0)].sum() / max(before[must].sum(), 1e-9)), int(must.sum())

    def _risen(self, new: Float64Array, before: Float64Array) -> float:
        return float(np.sort(np.maximum(new - before, 0))[-self.risen_items :].sum())


def _missing(column: Column) -> Mask:
    if isinstance(column, Ragged):
        return np.asarray(np.diff(column.offsets) == 0)
    values = np.asarray(column.values)
    if values.dtype.kind != "f":
        return np.asarray(values == MISSING)
    missing = np.isnan(values)
    return missing if missing.ndim == 1 else np.asarray(missing.all(1))
