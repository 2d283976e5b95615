"""Splits: each gives every event its part, as one Ibis expression that any engine runs.

`events` has the columns `user_id, item_id, time, shard, row` (and `split` where the files have it); `source` holds all
events as read, `events` those that are left after cleaning. The result has a column `part` more: 0 is training, 1
validation, 2 test.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import ibis
import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt

from recsys.core.errors import UserError
from recsys.data.preparation.engines import Session, first_row, rows

TRAIN, VAL, TEST = 0, 1, 2
NAMES = {"train": TRAIN, "val": VAL, "test": TEST}


class Split(Protocol):
    """How events are dealt out to training, validation and test. A frozen dataclass: its fields name it.

    Attributes:
        needs: the column, besides the ids, that it cannot do without: `timestamp` or `split`.
    """

    needs: ClassVar[str]

    def assign(self, session: Session, events: ir.Table, source: ir.Table) -> ir.Table:
        """`events` with the column `part`."""


Indices = npt.NDArray[np.int64]

# Values that say where a quantile lies.
_SAMPLE = 10_000
# Values that are looked at together, so that they stay in the cache.
_BLOCK = 1 << 17


class Timeline(NamedTuple):
    """All events by user, the part that the files' column gives (if the split needs it) and time.

    Attributes:
        time: as read, int64 [E].
        lengths: int64 [U, 3], events of each user in each part of the column; [U, 1], altogether, without it.
    """

    time: Indices
    lengths: Indices


@runtime_checkable
class Continuing(Protocol):
    """A split that can also cut events that lie in order already, which is what growing a data set needs.

    It must give the parts that `assign` gives, and leave the order of a user's events as it is.
    """

    def sizes(self, timeline: Timeline) -> Indices:
        """Each user's number of training, validation and test events, int64 [U, 3]."""


@dataclass(frozen=True)
class Temporal:
    """One moment for everyone: what happens at or after a cut belongs to the later part.

    The cuts are linearly interpolated quantiles of the time of all events as read.

    Attributes:
        train: share of the events before the first cut.
        val: share of the events between the cuts.
    """

    train: float = 0.8
    val: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.train < 1 and 0 < self.val < 1 and self.train + self.val < 1):
            raise UserError(
                f"split.train={self.train}, split.val={self.val}: expected two shares between 0 and 1, "
                f"with a sum below 1"
            )

    needs: ClassVar[str] = "timestamp"

    def assign(self, session: Session, events: ir.Table, source: ir.Table) -> ir.Table:
        """`events` with the column `part`."""
        first, second = _cuts(session, source, (self.train, self.train + self.val))
        part = (events.time >= first).cast("int8") + (events.time >= second).cast("int8")
        return events.mutate(part=part.cast("int8"))

    def sizes(self, timeline: Timeline) -> Indices:
        """Each user's number of training, validation and test events, int64 [U, 3]."""
        time, lengths = timeline.time, timeline.lengths.sum(1)
        places = _places((self.train, self.train + self.val), len(time))

        def before_cut(place: float) -> Indices:
            return _before(time, _cut(ranked_pair(time, math.floor(place)), place), lengths)

        with ThreadPoolExecutor(len(places)) as pool:
            before = [*pool.map(before_cut, places)]
        return np.stack([before[0], before[1] - before[0], lengths - before[1]], axis=1)


@dataclass(frozen=True)
class LeaveLastOut:
    """Of every user with three events or more, the last is test and the one before it validation.

    Events of equal time keep the order of the files.
    """

    needs: ClassVar[str] = "timestamp"

    def assign(self, session: Session, events: ir.Table, source: ir.Table) -> ir.Table:  # noqa: ARG002
        """`events` with the column `part`."""
        ranked = _from_the_end(events)
        long = ranked.num_of_user >= 3
        part = ibis.cases((long & (ranked.from_end == 0), TEST), (long & (ranked.from_end == 1), VAL), else_=TRAIN)
        return ranked.mutate(part=part.cast("int8")).drop("from_end", "num_of_user")

    def sizes(self, timeline: Timeline) -> Indices:
        """Each user's number of training, validation and test events, int64 [U, 3]."""
        lengths = timeline.lengths.sum(1)
        held_out = (lengths >= 3).astype(np.int64)
        return np.stack([lengths - 2 * held_out, held_out, held_out], axis=1)


@dataclass(frozen=True)
class Given:
    """The column `split` decides: train, val or test.

    Where no row says val, the last training event of each user with at least two becomes validation.
    """

    needs: ClassVar[str] = "split"

    def assign(self, session: Session, events: ir.Table, source: ir.Table) -> ir.Table:
        """`events` with the column `part`.

        Raises:
            UserError: the column holds something else, or nothing, somewhere.
        """
        found = [row["split"] for row in rows(session, source.select("split").distinct().order_by("split").limit(20))]
        if wrong := [value for value in found if value not in NAMES]:
            listed = ", ".join("null" if value is None else repr(value) for value in wrong)
            raise UserError(f"column 'split' of interactions: found {listed}; expected train, val or test")
        part = ibis.cases(*((events.split == name, code) for name, code in NAMES.items()))
        parts = events.mutate(part=part.cast("int8"))
        if "val" in found:
            return parts
        ranked = _from_the_end(parts, "part")
        held_out = (ranked.part == TRAIN) & (ranked.from_end == 0) & (ranked.num_of_user >= 2)
        return ranked.mutate(part=held_out.ifelse(VAL, ranked.part).cast("int8")).drop("from_end", "num_of_user")

    def sizes(self, timeline: Timeline) -> Indices:
        """Each user's number of training, validation and test events, int64 [U, 3]."""
        train, val, test = timeline.lengths.T
        if not val.any():
            val = (train >= 2).astype(np.int64)
            train = train - val
        return np.stack([train, val, test], axis=1)


def _from_the_end(events: ir.Table, *also_by: str) -> ir.Table:
    """Place of each event among its user's, the last being 0, and how many those are."""
    by = ["user_id", *also_by]
    latest_first = [events.time.desc(), events.shard.desc(), events.row.desc()]
    return events.mutate(
        from_end=ibis.row_number().over(ibis.window(group_by=by, order_by=latest_first)),
        num_of_user=events.count().over(ibis.window(group_by=by)),
    )


def _cuts(session: Session, events: ir.Table, shares: tuple[float, float]) -> list[int]:
    """For each share, the first whole time at or after that quantile, as numpy computes it, whatever the engine.

    The engine only says which two times lie beside the quantile, which is exact.
    """
    num_events = int(first_row(session, events.aggregate(n=events.count()))["n"])
    places = _places(shares, num_events)
    counted = events.group_by("time").aggregate(n=events.count())
    ranked = counted.mutate(upto=counted.n.sum().over(ibis.cumulative_window(order_by=counted.time)))
    beside = {
        f"{name}_{which}": ranked.time.min(where=ranked.upto > min(math.floor(place) + step, num_events - 1))
        for which, place in enumerate(places)
        for step, name in enumerate(("below", "above"))
    }
    found = first_row(session, ranked.aggregate(**beside))
    cuts = []
    for which, place in enumerate(places):
        neighbours = np.array([found[f"below_{which}"], found[f"above_{which}"]], np.int64)
        cuts.append(_cut(neighbours, place))
    return cuts


def _places(shares: tuple[float, float], num_events: int) -> list[float]:
    """Where the quantiles lie among the ordered events."""
    # numpy's percentile (and so pandas') multiplies and divides by 100; so does this, for the same last bit.
    return [share * 100 / 100 * (num_events - 1) for share in shares]


def _cut(neighbours: Indices, place: float) -> int:
    """The first whole time at or after the quantile that lies between two times."""
    return math.ceil(np.quantile(neighbours, place - math.floor(place)))


def ranked_pair(values: Indices, rank: int) -> Indices:
    """The two values of that rank (from 0) and the next; the last one twice where there is no next.

    A sample says between which values they lie, and only those are sorted: a tenth of the time of `np.partition`.
    """
    sample = np.sort(values[:: max(len(values) // _SAMPLE, 1)])
    middle, apart = rank * len(sample) // len(values), 4 * math.isqrt(len(sample))
    low, high = sample[max(middle - apart, 0)], sample[min(middle + apart, len(sample) - 1)]
    below, parts = 0, []
    for begin in range(0, len(values), _BLOCK):
        block = values[begin : begin + _BLOCK]
        below += int(np.count_nonzero(block < low))
        parts.append(block[(block >= low) & (block <= high)])
    between, last = np.concatenate(parts), min(rank + 1, len(values) - 1)
    if not below <= rank <= last < below + len(between):
        return np.partition(values, [rank, last])[[rank, last]]
    return np.partition(between, [rank - below, last - below])[[rank - below, last - below]]


def _before(time: Indices, moment: int, lengths: Indices) -> Indices:
    """How many events of each row were before a moment; rows lie one after another."""
    later = np.flatnonzero(time >= moment)
    ends = np.cumsum(lengths)
    return lengths - np.diff(np.searchsorted(later, ends), prepend=0)
