"""Gates on the border between what was learned from and what is measured on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from recsys.operations.gates.event_window import DAY, Ints, Mask, share
from recsys.operations.gates.evidence import Evidence
from recsys.operations.gates.verdict import Outcome, at_most, untested


@dataclass(frozen=True)
class TrainedBefore:
    """Neither candidate nor served release learned from events of the window that they are measured on.

    A candidate that did is measured on its own training data. A served release that did is newer than the candidate.

    Attributes:
        tolerance_days: by which the training data may reach into the window (a split by user has no single border).
    """

    tolerance_days: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome for each of the two."""
        window = evidence.window
        if not window.has_times:
            yield untested(
                "border in time", f"data.time={window.dataset.meta.time_resolution}: there are no times to compare"
            )
            return
        border = int(window.time[window.is_test].min())
        # A split by user, such as leave-last-out, has no moment that all of the training lies before.
        has_border = int(window.time[window.is_train].max()) <= border
        for name in ("candidate", "served"):
            side = evidence.candidate if name == "candidate" else evidence.served
            manifest = side.retriever.manifest
            until = manifest.data.get("train_until")
            check = f"{name}'s training in the window"
            if until is None:
                yield untested(check, "the release does not say until when it learned")
            elif has_border:
                days = (until - border) / DAY
                yield at_most(check, days, self.tolerance_days, "days that its training reaches beyond the border")
            elif manifest.dataset_fingerprint == window.dataset.meta.fingerprint:
                yield self._by_user(check, evidence)
            else:
                yield untested(
                    check, "the split has no border in time, and these are not the data that it learned from"
                )

    def _by_user(self, check: str, evidence: Evidence) -> Outcome:
        """A split without one border: of each user, nothing that is learned is later than what is measured."""
        window = evidence.window
        data = window.dataset
        late = np.full(data.num_users, np.iinfo(np.int64).min)
        np.maximum.at(late, window.user[window.is_train], window.time[window.is_train])
        early = np.full(data.num_users, np.iinfo(np.int64).max)
        np.minimum.at(early, window.user[window.is_test], window.time[window.is_test])
        share = float((late > early)[window.user[window.is_test]].mean())
        return at_most(check, share, 0.0, "share of test events before a training event of their user")


@dataclass(frozen=True)
class NotRepeated:
    """The new events do not repeat what the same users did before, more than the events before them did.

    Copies of the new events among the old ones, under whatever time, are answers in the training data; so is an export
    that was appended twice.

    Attributes:
        more: share of the new events that may repeat in addition.
    """

    more: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome."""
        window = evidence.window
        repeats = _repeats(window.user, window.item)
        measured = share(repeats, window.is_test)
        held_out = ~window.is_test & ~window.is_train
        usual = share(repeats, held_out if held_out.any() else window.is_train)
        told = f"share of test events with an item of the user's history; {usual:.3f} in the part before"
        yield at_most("repeated items", measured, usual + self.more, told)


def _repeats(user: Ints, item: Ints) -> Mask:
    """Whether the user has an earlier event with the item; events of a user are in order."""
    keys = user * (int(item.max(initial=0)) + 1) + item
    repeats = np.ones(len(keys), bool)
    repeats[np.unique(keys, return_index=True)[1]] = False
    return repeats
