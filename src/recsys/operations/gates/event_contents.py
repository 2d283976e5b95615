"""Gates on the contents of the new events: features, items, users and types of action, compared with those before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from recsys.core.columns import Column, Ragged
from recsys.core.schema import MISSING
from recsys.core.types import Float64Array
from recsys.operations.gates.event_window import NO_TIMES, EventWindow, Ints, Mask, share
from recsys.operations.gates.evidence import Evidence
from recsys.operations.gates.judged_requests import action_columns
from recsys.operations.gates.verdict import Outcome, at_least, at_most, failed, untested

# An item with this many expected events has none by chance in one of 150 cases, if events come independently.
_EXPECTED_EVENTS = 5


@dataclass(frozen=True, kw_only=True)
class Nulls:
    """Stop a candidate if features of the new events, of their items or of their users are null more often than before.

    If a producer stops writing a column, it is null from that day on. The tower treats it as missing and gets worse
    without an error.
    """

    is_data_gate: ClassVar[bool] = True
    max_increase: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome for each feature of the events and for each column of the served release's items."""
        window = evidence.window
        for feature in window.dataset.schema.features:
            missing = _missing(window.dataset.columns[feature.key])
            rows = {"items": window.item, "users": window.user}.get(feature.owner)
            values = missing if rows is None else missing[rows]
            found, usual = share(values, window.new), share(values, window.before)
            yield self._share(feature.key, found, usual=usual, when="before")
        ours, theirs = (side.retriever for side in (evidence.candidate, evidence.served))
        for name in theirs.items.column_names[2:]:
            check = f"catalogue {name}"
            if name not in ours.items.column_names:
                yield failed(check, 1.0, threshold=0.0, reason="the candidate's items do not have this column")
                continue
            found, usual = (side.items[name].null_count / max(1, len(side.items)) for side in (ours, theirs))
            yield self._share(check, found, usual=usual, when="in the served release")
        lost = {f.key for f in theirs.schema.features} - {f.key for f in ours.schema.features}
        reason = f"missing: {', '.join(sorted(lost))}" if lost else "the candidate has all features of the served one"
        yield at_most("features lost", float(len(lost)), threshold=0.0, reason=reason)

    def _share(self, check: str, found: float, *, usual: float, when: str) -> Outcome:
        reason, fits = f"share of nulls, {usual:.3f} {when}", {"max_increase": found - usual}
        return at_most(check, found, threshold=usual + self.max_increase, reason=reason, fits=fits)


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """Stop a candidate if the new events have many more new items or new users than before, or hardly any new users.

    Ids that are written differently, or that come from another system, look new. If the events of users who join are
    lost, there are no new users. A lack of new items stops nothing, because items may come in batches.
    """

    is_data_gate: ClassVar[bool] = True
    max_increase: float
    max_ratio: float
    min_new_users_ratio: float
    min_usual_new_users: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome for items and two for users."""
        window = evidence.window
        names = "new items", "new users", "users who are new"
        if not window.has_times:
            yield from (untested(name, NO_TIMES) for name in names)
            return
        news = {names[0]: _count_new(window, window.item), names[1]: _count_new(window, window.user)}
        for name, (found, usual) in news.items():
            if usual is None:
                yield untested(name, "no events before the reference", value=found.share)
                continue
            bound = max(usual.share + self.max_increase, self.max_ratio * usual.share)
            reason = f"share of events, {usual.share:.3f} in an equal time before"
            fits = {"max_increase": found.share - usual.share}
            yield at_most(name, found.share, threshold=bound, reason=reason, fits=fits)
        found, usual = news[names[1]]
        if usual is None or usual.number < self.min_usual_new_users:
            number = usual.number if usual else 0
            yield untested(names[2], f"{number} in an equal time before, expected {self.min_usual_new_users}")
            return
        bound = self.min_new_users_ratio * usual.number
        reason, fits = f"{usual.number} in an equal time before", {"min_new_users_ratio": found.number / usual.number}
        yield at_least(names[2], float(found.number), threshold=bound, reason=reason, fits=fits)


class _NewValues(NamedTuple):
    """Values without an earlier event: their share of the events, and their number."""

    share: float
    number: int


def _count_new(window: EventWindow, values: Ints) -> tuple[_NewValues, _NewValues | None]:
    """Count the values that no earlier event has, in the window and in an equal time before it.

    The second result is None if the data does not reach back far enough.
    """
    first = np.full(int(values.max(initial=0)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, values, window.time)

    def count(events: Mask, since: int, until: int) -> _NewValues:
        number = int(np.count_nonzero((first >= since) & (first < until)))
        return _NewValues(float((first[values[events]] >= since).mean()) if events.any() else 0.0, number)

    found = count(window.new, window.begin, np.iinfo(np.int64).max)
    start = window.begin - (window.end - window.begin)
    earlier = (window.time >= start) & (window.time < window.begin)
    if not earlier.any() or int(window.time.min()) >= start:
        return found, None
    return found, count(earlier, start, window.begin)


@dataclass(frozen=True, kw_only=True)
class LabelShift:
    """Stop a candidate if the shares of the types of action, or of other categories with few values, have changed.

    If saves turn into clicks overnight, the logging changed, not the users. Targets that depend on the type of action
    then count something else.
    """

    is_data_gate: ClassVar[bool] = True
    max_distance: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome for each column."""
        window = evidence.window
        for feature in action_columns(window.dataset):
            codes = np.asarray(window.dataset.columns[feature.key].values)
            # The gate `nulls` judges missing values.
            shares = [_shares(codes[rows & (codes != MISSING)], feature.size) for rows in (window.new, window.before)]
            distance = 0.5 * float(np.abs(shares[0] - shares[1]).sum())
            reason, fits = "total variation distance to the reference", {"max_distance": distance}
            yield at_most(feature.key, distance, threshold=self.max_distance, reason=reason, fits=fits)


def _shares(codes: Ints, size: int) -> Float64Array:
    return np.asarray(np.bincount(codes, minlength=size) / max(1, len(codes)))


@dataclass(frozen=True, kw_only=True)
class ItemShift:
    """Stop a candidate if the distribution of the new events over items changed much more than it changed before.

    The change from the time before the window to the window is compared with the change before that, over times of
    equal length. Ids that were mixed up leave the number of items, users and events as it is, but they change which
    items are popular. A campaign, a bot or a default value raises a few items by more than items usually rise. A part
    of the export that is missing leaves popular items without events.
    """

    is_data_gate: ClassVar[bool] = True
    max_distance_increase: float
    num_popular_items: int
    max_risen_increase: float
    num_risen_items: int
    max_vanished_increase: float
    min_expected_items: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome each for the most popular items, for risen items, and for vanished items."""
        window = evidence.window
        names = "popular items", "risen items", "vanished items"
        if not window.has_times:
            yield from (untested(name, NO_TIMES) for name in names)
            return
        length = window.end - window.begin
        stretches = [
            (window.time >= window.begin - back * length) & (window.time < window.begin - (back - 1) * length)
            for back in (1, 2)
        ]
        if not window.new.any() or min(map(np.count_nonzero, stretches)) < 100:
            yield from (untested(name, "fewer than 100 events in an equal time before") for name in names)
            return
        counts = [
            np.bincount(window.item[rows], minlength=window.dataset.num_items + 1) for rows in (window.new, *stretches)
        ]
        new, before, earlier = (count / count.sum() for count in counts)
        found, usual = self._distance(new, before), self._distance(before, earlier)
        reason = f"total variation distance, {usual:.3f} before"
        fits = {"max_distance_increase": found - usual}
        yield at_most(names[0], found, threshold=usual + self.max_distance_increase, reason=reason, fits=fits)
        found, usual = self._risen_share(new, before), self._risen_share(before, earlier)
        reason = f"share of the events that {self.num_risen_items} items won, {usual:.3f} before"
        fits = {"max_risen_increase": found - usual}
        yield at_most(names[1], found, threshold=usual + self.max_risen_increase, reason=reason, fits=fits)
        found, expected = self._vanished(counts[0], before)
        usual, expected_before = self._vanished(counts[1], earlier)
        if min(expected, expected_before) < self.min_expected_items:
            reason = f"{expected} items that should have events, expected {self.min_expected_items}"
            yield untested(names[2], reason, value=found)
            return
        reason = f"share of the earlier events of {expected} items that should have some, {usual:.3f} before"
        fits = {"max_vanished_increase": found - usual}
        yield at_most(names[2], found, threshold=usual + self.max_vanished_increase, reason=reason, fits=fits)

    def _distance(self, new: Float64Array, before: Float64Array) -> float:
        top = np.argsort(-before, kind="stable")[: self.num_popular_items]
        rest = abs(float(new[top].sum() - before[top].sum()))
        return 0.5 * (float(np.abs(new[top] - before[top]).sum()) + rest)

    def _vanished(self, counts: Ints, before: Float64Array) -> tuple[float, int]:
        expected = before * counts.sum() >= _EXPECTED_EVENTS
        vanished = float(before[expected & (counts == 0)].sum() / max(before[expected].sum(), 1e-9))
        return vanished, int(expected.sum())

    def _risen_share(self, new: Float64Array, before: Float64Array) -> float:
        return float(np.sort(np.maximum(new - before, 0))[-self.num_risen_items :].sum())


def _missing(column: Column) -> Mask:
    if isinstance(column, Ragged):
        return np.asarray(np.diff(column.offsets) == 0)
    values = np.asarray(column.values)
    if values.dtype.kind != "f":
        return np.asarray(values == MISSING)
    missing = np.isnan(values)
    return missing if missing.ndim == 1 else np.asarray(missing.all(1))
