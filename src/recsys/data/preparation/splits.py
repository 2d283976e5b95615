"""Splits: each assigns every event to training, validation or test, as one Ibis expression that any engine runs.

The table `events` has the columns `user_id, item_id, time, shard, row` (and `split` if the files have it). The table
`source` holds all events as read; `events` holds those that remain after cleaning. The result has one more column,
`part`: 0 is training, 1 validation, 2 test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import ibis
import ibis.expr.types as ir
import numpy as np

from recsys.core.errors import UserError
from recsys.data.preparation.engines import Session, first_row, rows

TRAIN, VAL, TEST = 0, 1, 2
_PRIME = 2**31 - 1
PART_CODES = {"train": TRAIN, "val": VAL, "test": TEST}


class Split(Protocol):
    """Assigns events to training, validation and test.

    Implementations are frozen dataclasses: their `repr` is part of the fingerprint of a prepared data set.

    Attributes:
        needs: column that the split requires besides the ids: `timestamp`, `split`, or `order` for timestamps or the
            order of the rows. None for no column.
        advice: optional; end of the message if a part has no events.
    """

    needs: ClassVar[str | None]

    def assign(self, session: Session, events: ir.Table, *, source: ir.Table) -> ir.Table:
        """Return `events` with the column `part`."""


@dataclass(frozen=True)
class TemporalSplit:
    """Split at two moments that are the same for all users. An event at or after a cut belongs to the later part.

    The cuts are linearly interpolated quantiles of the time of all events as read.

    Attributes:
        train: share of the events before the first cut.
        val: share of the events between the cuts.
    """

    train: float = 0.8
    val: float = 0.1

    def __post_init__(self) -> None:
        _check_shares(self.train, self.val)

    needs: ClassVar[str] = "timestamp"
    advice: ClassVar[str] = (
        "expected more different times, or other shares (split.train, split.val); split=leave_last_out and "
        "split=random also work if many events have one time"
    )

    def assign(self, session: Session, events: ir.Table, *, source: ir.Table) -> ir.Table:
        """Return `events` with the column `part`."""
        first, second = _cuts(session, source, shares=(self.train, self.train + self.val))
        part = (events.time >= first).cast("int8") + (events.time >= second).cast("int8")
        return events.mutate(part=part.cast("int8"))


@dataclass(frozen=True)
class NoSplit:
    """Leave all events in the training part, for data that trained towers only serve."""

    needs: ClassVar[str | None] = None

    def assign(self, session: Session, events: ir.Table, *, source: ir.Table) -> ir.Table:  # noqa: ARG002
        """Return `events` with the column `part`."""
        return events.mutate(part=ibis.literal(TRAIN, "int64"))


@dataclass(frozen=True)
class LeaveLastOutSplit:
    """Split off the last event of each user as test and the one before it as validation.

    All events of users with fewer than three are training events. Events of equal time keep the order of the files, and
    so do all events of data without times (`data.time=order`).
    """

    needs: ClassVar[str] = "order"
    advice: ClassVar[str] = "expected users with at least three events; split=random and split=temporal need none"

    def assign(self, session: Session, events: ir.Table, *, source: ir.Table) -> ir.Table:  # noqa: ARG002
        """Return `events` with the column `part`."""
        ranked = _from_the_end(events)
        long = ranked.num_of_user >= 3
        part = ibis.cases((long & (ranked.from_end == 0), TEST), (long & (ranked.from_end == 1), VAL), else_=TRAIN)
        return ranked.mutate(part=part.cast("int8")).drop("from_end", "num_of_user")


@dataclass(frozen=True)
class RandomSplit:
    """Split every event at random, whoever its user is and whenever it happened.

    The part of an event depends on the seed and on the place of its row alone, so a further shard changes no part of
    earlier events. A model may learn from events that are later than those of the test part: for data with times,
    `TemporalSplit` measures what a deployed model meets.

    Attributes:
        train: probability of the training part.
        val: probability of the validation part.
        seed: seed of the draw.
    """

    train: float = 0.8
    val: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        _check_shares(self.train, self.val)
        if not isinstance(self.seed, int) or self.seed < 0:
            raise UserError(f"split.seed={self.seed}: expected an integer of 0 or more")

    needs: ClassVar[str | None] = None
    advice: ClassVar[str] = "expected more events, or other shares (split.train, split.val)"

    def assign(self, session: Session, events: ir.Table, *, source: ir.Table) -> ir.Table:  # noqa: ARG002
        """Return `events` with the column `part`."""
        # A keyed permutation of the integers below the prime, the same on every engine: rounds of adding a key and
        # taking the fifth power. No product exceeds 64 bits.
        keys = np.random.default_rng(self.seed).integers(1, _PRIME, 4).tolist()
        draw = (events.row % _PRIME + events.shard % 2**20 * keys[0]) % _PRIME
        drawn = events.mutate(draw=draw)
        for key in keys[1:]:
            drawn = drawn.mutate(draw=(drawn.draw + key) % _PRIME)
            drawn = drawn.mutate(squared=drawn.draw * drawn.draw % _PRIME)
            drawn = drawn.mutate(draw=drawn.squared * drawn.squared % _PRIME * drawn.draw % _PRIME)
        cuts = [math.floor(share * _PRIME) for share in (self.train, self.train + self.val)]
        part = (drawn.draw >= cuts[0]).cast("int8") + (drawn.draw >= cuts[1]).cast("int8")
        return drawn.mutate(part=part.cast("int8")).drop("draw", "squared")


@dataclass(frozen=True)
class GivenSplit:
    """Split by the column `split`, which holds train, val or test.

    If no row holds val, the last training event of each user with at least two becomes validation.
    """

    needs: ClassVar[str] = "split"
    advice: ClassVar[str] = "expected rows with train and test in the column 'split'"

    def assign(self, session: Session, events: ir.Table, *, source: ir.Table) -> ir.Table:
        """Return `events` with the column `part`.

        Raises:
            UserError: If the column holds another value or a null.
        """
        found = [row["split"] for row in rows(session, source.select("split").distinct().order_by("split").limit(20))]
        if wrong := [value for value in found if value not in PART_CODES]:
            shown = ", ".join("null" if value is None else repr(value) for value in wrong)
            raise UserError(f"column 'split' of interactions: found {shown}; expected train, val or test")
        part = ibis.cases(*((events.split == name, code) for name, code in PART_CODES.items()))
        parts = events.mutate(part=part.cast("int8"))
        if "val" in found:
            return parts
        ranked = _from_the_end(parts, "part")
        held_out = (ranked.part == TRAIN) & (ranked.from_end == 0) & (ranked.num_of_user >= 2)
        return ranked.mutate(part=held_out.ifelse(VAL, ranked.part).cast("int8")).drop("from_end", "num_of_user")


_NAMES_IN_FINGERPRINTS: dict[type, str] = {
    TemporalSplit: "Temporal",
    LeaveLastOutSplit: "LeaveLastOut",
    GivenSplit: "Given",
}


def fingerprint_text(split: Split) -> str:
    """Return the text of a split in fingerprints of prepared data sets.

    It is the `repr` of the split, with the earlier class names of this module's splits: otherwise existing data sets
    would be prepared again.
    """
    name = _NAMES_IN_FINGERPRINTS.get(type(split))
    return repr(split) if name is None else repr(split).replace(type(split).__name__, name, 1)


def _check_shares(train: float, val: float) -> None:
    if not (0 < train < 1 and 0 < val < 1 and train + val < 1):
        raise UserError(
            f"split.train={train}, split.val={val}: expected two shares between 0 and 1, with a sum below 1"
        )


def _from_the_end(events: ir.Table, *also_by: str) -> ir.Table:
    """Add the position of each event counted from the user's last (0), and the user's number of events."""
    by = ["user_id", *also_by]
    latest_first = [events.time.desc(), events.shard.desc(), events.row.desc()]
    return events.mutate(
        from_end=ibis.row_number().over(ibis.window(group_by=by, order_by=latest_first)),
        num_of_user=events.count().over(ibis.window(group_by=by)),
    )


def _cuts(session: Session, events: ir.Table, *, shares: tuple[float, float]) -> list[int]:
    """Return the first whole time at or after the quantile of each share, equal to numpy's on every engine.

    The engine finds the two neighbouring times, which are exact integers; numpy interpolates between them.
    """
    num_events = int(first_row(session, events.aggregate(n=events.count()))["n"])
    # numpy's percentile (and so pandas') multiplies and divides by 100; so does this, for the same last bit.
    places = [share * 100 / 100 * (num_events - 1) for share in shares]
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
        cuts.append(math.ceil(np.quantile(neighbours, place - math.floor(place))))
    return cuts
