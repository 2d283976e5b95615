"""Gates on what is shown, and on the embeddings behind it, beside what the served release does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from recsys.core.columns import load_array
from recsys.core.types import Float64Array
from recsys.operations.gates.evidence import Evidence, Side
from recsys.operations.gates.verdict import Outcome, at_least, at_most, untested
from recsys.release.manifest import EMBEDDINGS

_PAIRS = 20_000


@dataclass(frozen=True)
class Coverage:
    """Shows about as much of the corpus as what is served.

    A model that shows the same few items to everyone can keep its recall for a while; what is not shown is not learned.

    Attributes:
        share: of the served release's coverage that must be kept.
        cutoff: of the lists.
    """

    share: float
    cutoff: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome."""
        name = f"coverage@{self.cutoff}"
        found, served = evidence.candidate.metrics[name], evidence.served.metrics[name]
        yield at_least(name, found, self.share * served, f"{self.share:g} of the served {served:.4f}")


@dataclass(frozen=True)
class PopularityDrift:
    """Does not lean to popular items more than what is served.

    Each retraining learns from what the one before showed, so that a lean to the head feeds itself.

    Attributes:
        growth: times the served popularity of what is shown, at most (mean training events of an item shown, relative).
        head: share of head items among those shown that may be added.
        cutoff: of the lists.
    """

    growth: float
    head: float
    cutoff: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome for popularity and one for the head."""
        name = f"popularity@{self.cutoff}"
        found, served = evidence.candidate.metrics[name], evidence.served.metrics[name]
        yield at_most(name, found, self.growth * served, f"{self.growth:g} times the served {served:.3g}")
        found, served = (_head_share(side, self.cutoff) for side in (evidence.candidate, evidence.served))
        yield at_most(f"head@{self.cutoff}", found, served + self.head, f"the served {served:.4f} and {self.head:g}")


def _head_share(side: Side, cutoff: int) -> float:
    """Share of items of the head (first half of the training events) among what is shown."""
    counts = side.asked.dataset.train_count
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    is_head = np.zeros(len(counts), bool)
    is_head[order[before < 0.5 * counts.sum()]] = True
    shown = side.shown[:, :cutoff]
    return float(is_head[shown[shown > 0]].mean()) if (shown > 0).any() else 0.0


@dataclass(frozen=True)
class Overlap:
    """Shows users some of what they are shown now.

    Lists that have nothing in common with those of a release of about the same quality are a sign of mixed ids or of
    another model; users see everything change at once.

    Attributes:
        least: mean share of the served list that the candidate's list holds.
        cutoff: of the lists.
    """

    least: float
    cutoff: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome."""
        ours, theirs = (side.shown[:, : self.cutoff] for side in (evidence.candidate, evidence.served))
        both = ((ours[:, :, None] == theirs[:, None, :]) & (ours[:, :, None] > 0)).any(2).sum(1)
        share = both / np.maximum((theirs > 0).sum(1), 1)
        yield at_least(f"overlap@{self.cutoff}", float(share.mean()), self.least, "mean share of the served list")


@dataclass(frozen=True)
class Embeddings:
    """Finite embeddings that differ from each other as much as the served ones do.

    Collapsed embeddings answer everyone alike, and exploded norms let a few items win everywhere; both can begin long
    before the metrics fall.

    Attributes:
        apart: share of the served mean distance (1 - cosine) of two items, or of two users, that must be kept.
        norms: times the served spread of item norms (0.99 quantile over median), at most.
        spread: share of the served spread of scores within a list, relative to their size, that must be kept.
    """

    apart: float
    norms: float
    spread: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Outcomes for items, users and scores."""
        items, served = (_items(side) for side in (evidence.candidate, evidence.served))
        users, served_users = (_users(side) for side in (evidence.candidate, evidence.served))
        for name, ours, theirs in (("item", items, served), ("user", users, served_users)):
            finite = float(np.isfinite(ours).all(1).mean())
            yield at_least(f"finite {name} embeddings", finite, 1.0, "share without nan and inf")
            now, then = _distance(ours), _distance(theirs)
            told = f"mean 1 - cosine of two; {self.apart:g} of the served {then:.3f}"
            yield at_least(f"{name} distance", now, self.apart * then, told)
        now, then = _norm_spread(items), _norm_spread(served)
        yield at_most("norm spread", now, self.norms * then, f"0.99 quantile over median; served {then:.3g}")
        now, then = _score_spread(evidence.candidate), _score_spread(evidence.served)
        told = f"first score less the last, over the mean size; {self.spread:g} of the served {then:.3g}"
        yield at_least("score spread", now, self.spread * then, told) if then > 0 else untested("score spread", told)


def _items(side: Side) -> Float64Array:
    return np.asarray(load_array(side.retriever.folder / EMBEDDINGS)).astype(np.float64)


def _users(side: Side) -> Float64Array:
    users = side.embeddings.astype(np.float64)
    return users.reshape(len(users), -1)


def _distance(rows: Float64Array) -> float:
    """Mean 1 - cosine of two different rows, drawn; 0 where all are alike."""
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, len(rows), (2, _PAIRS))
    one, other = one[one != other], other[one != other]
    if not len(one):
        return 0.0
    size = np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
    return 1 - float(((rows[one] * rows[other]).sum(1) / size[one] / size[other]).mean())


def _norm_spread(rows: Float64Array) -> float:
    size = np.linalg.norm(rows, axis=1)
    return float(np.quantile(size, 0.99) / max(float(np.median(size)), 1e-30))


def _score_spread(side: Side) -> float:
    """How far the scores of a list lie apart, relative to their size; mean over the lists."""
    scores = np.where(np.isfinite(side.scores), side.scores, np.nan).astype(np.float64)
    full = ~np.isnan(scores).any(1)
    if not full.any():
        return 0.0
    apart = scores[full, 0] - scores[full, -1]
    return float((apart / np.maximum(np.abs(scores[full]).mean(1), 1e-30)).mean())
