"""Gates on new items: whether lists show them, and whether the index holds the newest ones. R requests, K items."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.core.types import Float64Array
from recsys.data.dataset import NO_BIRTH, PreparedDataset
from recsys.operations.gates.event_window import DAY, NO_TIMES
from recsys.operations.gates.evidence import Evidence, JudgedRelease, K
from recsys.operations.gates.non_inferiority import PairedMetric, non_inferiority
from recsys.operations.gates.verdict import Outcome, at_least, at_most, untested


@dataclass(frozen=True, kw_only=True)
class NewItemsShown:
    """Stop a candidate that hides new items, which no training event of the data names.

    The means over all items hardly change if new items are never shown, and a served release cannot find items that
    are newer than itself, so a comparison of recall alone shows nothing. The share of new items among the shown ones is
    compared with that of the served release on the same requests, and with that at the time when it was made.
    """

    min_ratio: float
    significance_level: float
    detectable_loss: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return an outcome for the same requests, and one for the record of the served release."""
        check, is_new = f"new items in the first {K}", evidence.judged.dataset.train_count == 0
        is_new[0] = False
        found, served = (_share(side, is_new) for side in (evidence.candidate, evidence.served))
        pair = PairedMetric(found, served, margin=1 - self.min_ratio, setting="min_ratio")
        yield from non_inferiority({check: pair}, self.significance_level, detectable_loss=self.detectable_loss)
        check, relevant = f"{check}, as recorded", _relevant_share(evidence, is_new)
        recorded = evidence.served.retriever.manifest.record(f"cold_items/shown@{K}")
        usual = evidence.served.retriever.manifest.record("cold_items/relevant")
        if not recorded or not usual or not relevant:
            yield untested(check, "the served release has no such metric, or no relevant item is new")
            return
        # The test part of the served release may have had more or fewer new items.
        expected = recorded * min(1.0, relevant / usual)
        reason = f"{self.min_ratio:g} of the served release's {expected:.4f} when it was made"
        fits = {"min_ratio": float(found.mean()) / expected}
        yield at_least(check, float(found.mean()), threshold=self.min_ratio * expected, reason=reason, fits=fits)


def _share(side: JudgedRelease, is_new: npt.NDArray[np.bool_]) -> Float64Array:
    """Return the share of new items in each list, float64 [R]."""
    shown = side.shown
    return np.asarray(is_new[shown].sum(1) / np.maximum((shown > 0).sum(1), 1), np.float64)


def _relevant_share(evidence: Evidence, is_new: npt.NDArray[np.bool_]) -> float:
    relevant = evidence.judged.relevant.values
    return float(is_new[relevant].mean()) if len(relevant) else 0.0


@dataclass(frozen=True, kw_only=True)
class RecentIndex:
    """Stop an index that was built from old events, or that lacks the newest items.

    A folder that gets no events any more gives an index whose counts and ages are those of the past.
    """

    max_days_behind: float
    recent_days: float
    min_held: float
    min_items: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return an outcome for the newest event, and one for the items of the last days."""
        manifest, dataset = evidence.candidate.retriever.manifest, evidence.judged.dataset
        if not evidence.window.has_times:
            yield untested("days behind", NO_TIMES)
            return
        now = manifest.index_time.get("now")
        if now is None:
            yield untested("days behind", "the index was built for the time of the test part")
            now = int(dataset.time.max()) + 1
        else:
            behind = (now - manifest.data["until"]) / DAY
            reason, fits = "from its newest event to the time of the index", {"max_days_behind": behind}
            yield at_most("days behind", behind, threshold=self.max_days_behind, reason=reason, fits=fits)
        yield self._held(evidence, int(now))

    def _held(self, evidence: Evidence, now: int) -> Outcome:
        check, dataset = f"items of the last {self.recent_days:g} days", evidence.judged.dataset
        begun = _beginnings(dataset)
        recent = (begun >= now - self.recent_days * DAY) & (begun < now) & dataset.has_features
        # Items of test events alone are no part of a corpus.
        recent[dataset.meta.num_known + 1 :] = False
        if not evidence.run.model.reads_features:
            return untested(check, "the towers read no features, so they cannot place new items")
        if recent.sum() < self.min_items:
            return untested(check, f"{recent.sum()} items, fewer than {self.min_items}")
        held = np.zeros(len(recent), bool)
        held[evidence.candidate.item_idx] = True
        corpus = evidence.candidate.retriever.manifest.corpus
        # A corpus policy leaves out items on purpose, so recent ones are compared with all.
        usual = corpus["num_items"] / corpus["of"] if corpus else 1.0
        found = float(held[recent].mean())
        reason, fits = f"share of {recent.sum()} items that the index holds", {"min_held": found / usual}
        return at_least(check, found, threshold=self.min_held * usual, reason=reason, fits=fits)


def _beginnings(dataset: PreparedDataset) -> npt.NDArray[np.int64]:
    """Return the birth of each item, or the time of its first event if its birth is unknown; int64 [N + 1]."""
    first = np.full(dataset.num_items + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, np.asarray(dataset.item_idx), np.asarray(dataset.time))
    if dataset.born is None:
        return first
    return np.where(dataset.born == NO_BIRTH, first, dataset.born)
