"""Gates on the border between training data and the data that candidates are measured on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from recsys.operations.gates.event_window import DAY, Ints, Mask, share
from recsys.operations.gates.evidence import Evidence
from recsys.operations.gates.verdict import Outcome, at_most, untested


@dataclass(frozen=True, kw_only=True)
class TrainedBefore:
    """Stop a candidate if it, or the served release, was trained on events that both are measured on.

    Such a candidate would be measured on its own training data. Such a served release is newer than the candidate.
    """

    max_overlap_days: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome for the candidate and one for the served release."""
        window = evidence.window
        if not window.has_times:
            yield untested(
                "border in time", f"data.time={window.dataset.meta.time_resolution}: there are no times to compare"
            )
            return
        border = int(window.time[window.is_test].min())
        # With a split by user, such as leave-last-out, no single moment separates training and test events.
        has_border = int(window.time[window.is_train].max()) <= border
        for name in ("candidate", "served"):
            side = evidence.candidate if name == "candidate" else evidence.served
            manifest = side.retriever.manifest
            until = manifest.data.get("train_until")
            check = f"{name}'s training in the window"
            if until is None:
                yield untested(check, "the release has no time of its last training event")
            elif has_border:
                days = (until - border) / DAY
                yield at_most(
                    check,
                    days,
                    threshold=self.max_overlap_days,
                    reason="days that its training reaches beyond the border",
                    fits={"max_overlap_days": days},
                )
            elif manifest.dataset_fingerprint == window.dataset.meta.fingerprint:
                yield self._by_user(check, evidence)
            else:
                yield untested(check, "the split has no border in time, and the release was trained on other data")

    def _by_user(self, check: str, evidence: Evidence) -> Outcome:
        """Compare each user's test events with the same user's last training event."""
        window = evidence.window
        data = window.dataset
        last_train = np.full(data.num_users, np.iinfo(np.int64).min)
        np.maximum.at(last_train, window.user[window.is_train], window.time[window.is_train])
        first_test = np.full(data.num_users, np.iinfo(np.int64).max)
        np.minimum.at(first_test, window.user[window.is_test], window.time[window.is_test])
        found = float((last_train > first_test)[window.user[window.is_test]].mean())
        return at_most(check, found, threshold=0.0, reason="share of test events before a training event of their user")


@dataclass(frozen=True, kw_only=True)
class NotRepeated:
    """Stop a candidate if the test events repeat items of the same users' past more often than earlier events did.

    Copies of the new events among the old ones, even with other times, put the answers into the training data. An
    export that was appended twice does the same.
    """

    max_increase: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome."""
        window = evidence.window
        repeats = _repeats(window.user, window.item)
        measured = share(repeats, window.is_test)
        held_out = ~window.is_test & ~window.is_train
        usual = share(repeats, held_out if held_out.any() else window.is_train)
        reason = f"share of test events with an item of the user's history; {usual:.3f} in the part before"
        fits = {"max_increase": measured - usual}
        yield at_most("repeated items", measured, threshold=usual + self.max_increase, reason=reason, fits=fits)


def _repeats(user: Ints, item: Ints) -> Mask:
    """Return for each event if the user has an earlier event with the item; events of a user must be in order."""
    keys = user * (int(item.max(initial=0)) + 1) + item
    repeats = np.ones(len(keys), bool)
    repeats[np.unique(keys, return_index=True)[1]] = False
    return repeats
