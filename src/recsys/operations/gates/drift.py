"""Gates on the lists that users are shown and on the embeddings behind them, compared with the served release."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from recsys.core.types import Float64Array
from recsys.operations.gates.evidence import Evidence, JudgedRelease
from recsys.operations.gates.verdict import Outcome, at_least, at_most, untested

_NUM_PAIRS = 20_000


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Stop a candidate that shows a much smaller part of the corpus than the served release.

    A model that shows the same few items to everyone can keep its recall for some time. But items that are not shown
    get no events, so the next model cannot learn them.
    """

    min_ratio: float
    cutoff: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome."""
        name = f"coverage@{self.cutoff}"
        found, served = evidence.candidate.metrics[name], evidence.served.metrics[name]
        reason, fits = f"{self.min_ratio:g} of the served {served:.4f}", {"min_ratio": found / (served or np.nan)}
        yield at_least(name, found, threshold=self.min_ratio * served, reason=reason, fits=fits)


@dataclass(frozen=True, kw_only=True)
class PopularityDrift:
    """Stop a candidate that shows more popular items than the served release.

    Each retraining learns from the items that the previous model showed, so a bias towards the head reinforces itself.
    """

    max_ratio: float
    max_head_increase: float
    cutoff: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome for popularity and one for the head."""
        name = f"popularity@{self.cutoff}"
        found, served = evidence.candidate.metrics[name], evidence.served.metrics[name]
        reason, fits = f"{self.max_ratio:g} times the served {served:.3g}", {"max_ratio": found / (served or np.nan)}
        yield at_most(name, found, threshold=self.max_ratio * served, reason=reason, fits=fits)
        found, served = (_head_share(side, self.cutoff) for side in (evidence.candidate, evidence.served))
        reason = f"the served {served:.4f} plus {self.max_head_increase:g}"
        check, fits = f"head@{self.cutoff}", {"max_head_increase": found - served}
        yield at_most(check, found, threshold=served + self.max_head_increase, reason=reason, fits=fits)


def _head_share(side: JudgedRelease, cutoff: int) -> float:
    """Return the share of head items (first half of the training events) among the shown items."""
    counts = side.judged.dataset.train_count
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    is_head = np.zeros(len(counts), bool)
    is_head[order[before < 0.5 * counts.sum()]] = True
    shown = side.shown[:, :cutoff]
    return float(is_head[shown[shown > 0]].mean()) if (shown > 0).any() else 0.0


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Stop a candidate whose lists have almost nothing in common with those of the served release.

    If two releases of about the same quality share no items, ids were mixed up or it is another model. Users would see
    everything change at once.
    """

    min_overlap: float
    cutoff: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome."""
        ours, theirs = (side.shown[:, : self.cutoff] for side in (evidence.candidate, evidence.served))
        both = ((ours[:, :, None] == theirs[:, None, :]) & (ours[:, :, None] > 0)).any(2).sum(1)
        share = float((both / np.maximum((theirs > 0).sum(1), 1)).mean())
        check, reason = f"overlap@{self.cutoff}", "mean share of the served list"
        yield at_least(check, share, threshold=self.min_overlap, reason=reason, fits={"min_overlap": share})


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Stop a candidate whose embeddings are not finite, or differ from each other much less than the served ones.

    Collapsed embeddings give everyone the same answer, and exploded norms let a few items win everywhere. Both can
    begin long before the metrics fall.
    """

    min_distance_ratio: float
    max_norm_spread_ratio: float
    min_score_spread_ratio: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return outcomes for items, users and scores."""
        items, served_items = (_items(side) for side in (evidence.candidate, evidence.served))
        users, served_users = (_users(side) for side in (evidence.candidate, evidence.served))
        for name, ours, theirs in (("item", items, served_items), ("user", users, served_users)):
            finite = float(np.isfinite(ours).all(1).mean())
            yield at_least(f"finite {name} embeddings", finite, threshold=1.0, reason="share without nan and inf")
            found, served = _distance(ours), _distance(theirs)
            reason = f"mean 1 - cosine of two; {self.min_distance_ratio:g} of the served {served:.3f}"
            bound, fits = self.min_distance_ratio * served, {"min_distance_ratio": found / (served or np.nan)}
            yield at_least(f"{name} distance", found, threshold=bound, reason=reason, fits=fits)
        found, served = _norm_spread(items), _norm_spread(served_items)
        reason = f"0.99 quantile over median; served {served:.3g}"
        bound, fits = self.max_norm_spread_ratio * served, {"max_norm_spread_ratio": found / (served or np.nan)}
        yield at_most("norm spread", found, threshold=bound, reason=reason, fits=fits)
        found, served = _score_spread(evidence.candidate), _score_spread(evidence.served)
        yield judge_score_spread(found, served, min_ratio=self.min_score_spread_ratio)


def judge_score_spread(found: float, served: float, *, min_ratio: float) -> Outcome:
    """Compare the relative spread of scores within a list with that of the served release."""
    reason = f"first score minus the last, over the mean size; {min_ratio:g} of the served {served:.3g}"
    if not served > 0:
        return untested("score spread", reason)
    fits = {"min_score_spread_ratio": found / served}
    return at_least("score spread", found, threshold=min_ratio * served, reason=reason, fits=fits)


def _items(side: JudgedRelease) -> Float64Array:
    return side.retriever.item_search.embeddings.astype(np.float64)


def _users(side: JudgedRelease) -> Float64Array:
    users = side.embeddings.astype(np.float64)
    return users.reshape(len(users), -1)


def _distance(rows: Float64Array) -> float:
    """Return the mean 1 - cosine of two different rows, drawn at random; 0 if all rows are alike."""
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, len(rows), (2, _NUM_PAIRS))
    one, other = one[one != other], other[one != other]
    if not len(one):
        return 0.0
    size = np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
    return 1 - float(((rows[one] * rows[other]).sum(1) / size[one] / size[other]).mean())


def _norm_spread(rows: Float64Array) -> float:
    size = np.linalg.norm(rows, axis=1)
    return float(np.quantile(size, 0.99) / max(float(np.median(size)), 1e-30))


def _score_spread(side: JudgedRelease) -> float:
    """Return the mean spread of the scores of all full lists."""
    full = np.isfinite(side.scores).all(1)
    return relative_spread(side.scores[full].astype(np.float64)) if full.any() else 0.0


def relative_spread(scores: Float64Array) -> float:
    """Return the mean over rows of: first score minus the last, over the mean size of the scores."""
    return float(((scores[:, 0] - scores[:, -1]) / np.maximum(np.abs(scores).mean(1), 1e-30)).mean())
