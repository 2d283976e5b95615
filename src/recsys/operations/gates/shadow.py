"""Gates on sampled requests of users: both releases answer again what a server recorded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.core.types import Float64Array
from recsys.data.dataset import PreparedDataset
from recsys.operations.gates.drift import judge_score_spread, relative_spread
from recsys.operations.gates.event_window import NO_TIMES
from recsys.operations.gates.evidence import Evidence
from recsys.operations.gates.non_inferiority import PairedMetric, non_inferiority
from recsys.operations.gates.replay import Replay, ReplayedAnswer
from recsys.operations.gates.verdict import Outcome, at_least, at_most, untested
from recsys.release.runtime.item_ids import IdMap

# The replay represents serving if the release that made a recorded list returns this share of it again.
_MIN_FIDELITY = 0.9
_NO_SAMPLES = "skipped: no requests were sampled (recsys serve samples.share=, and samples.folder= here)"


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """Stop a candidate that answers sampled requests of users worse, slower or very differently.

    Test users send requests with the default settings. Real users send filters, features, histories of their own and
    any k. A release may refuse these, return fewer items, or show everyone the same, and still reach its metrics.
    """

    min_requests: int
    max_increase: float
    min_overlap: float
    max_popularity_ratio: float
    min_score_spread_ratio: float
    max_latency_ratio: float
    cutoff: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome for each figure."""
        dataset, replayed = evidence.judged.dataset, evidence.replay
        if len(replayed.samples) < self.min_requests:
            found = f"{len(replayed.samples)} sampled requests, expected {self.min_requests}"
            yield untested("sampled requests", found if replayed.samples else _NO_SAMPLES)
            return
        yield from _fidelity(replayed, evidence.served.retriever.version)
        ours, theirs = replayed.candidate, replayed.served
        problems = [answer.problem for answer in ours if answer.problem]
        failed = [np.array([bool(answer.problem) for answer in side], np.float64) for side in (ours, theirs)]
        yield self._share("errors", failed[0], served=failed[1], example="".join(problems[:1]))
        missing = [_missing(side, replayed.num_wanted()) for side in (ours, theirs)]
        yield self._share("missing items", missing[0], served=missing[1])
        both = [pair for pair in zip(ours, theirs, strict=True) if pair[0].answer and pair[1].answer]
        if not both:
            yield untested("lists", "both releases answer no request together")
            return
        one, other = ([pair[which] for pair in both] for which in (0, 1))
        unknown = np.array([(a.unknown, b.unknown) for a, b in both if not np.isnan(a.unknown)]).reshape(-1, 2)
        if len(unknown):
            yield self._share("unknown history items", unknown[:, 0], served=unknown[:, 1])
        yield from self._lists(one, other, dataset=dataset)
        ratio = float(np.median([a.seconds / b.seconds for a, b in both]))
        served_ms = 1000 * float(np.median([answer.seconds for answer in other]))
        reason = f"median over the requests; served {served_ms:.3f} ms"
        fits = {"max_latency_ratio": ratio}
        yield at_most("times as long", ratio, threshold=self.max_latency_ratio, reason=reason, fits=fits)

    def _share(self, check: str, found: Float64Array, *, served: Float64Array, example: str = "") -> Outcome:
        reason = f"{len(found)} requests, served {served.mean():.4f} plus {self.max_increase:g}"
        reason += f": such as {example}" if example else ""
        mean, usual = float(found.mean()), float(served.mean())
        fits = {"max_increase": mean - usual}
        return at_most(check, mean, threshold=usual + self.max_increase, reason=reason, fits=fits)

    def _lists(
        self, ours: Sequence[ReplayedAnswer], theirs: Sequence[ReplayedAnswer], *, dataset: PreparedDataset
    ) -> Iterable[Outcome]:
        held = [
            len({*b.item_ids}.intersection(a.item_ids)) / len(b.item_ids)
            for a, b in zip(ours, theirs, strict=True)
            if b.item_ids
        ]
        if not held:
            yield untested("lists", "the served release shows nothing")
            return
        overlap, reason = float(np.mean(held)), "mean share of the served list"
        yield at_least("overlap", overlap, threshold=self.min_overlap, reason=reason, fits={"min_overlap": overlap})
        shown, served = (_shown_items(side, self.cutoff, dataset=dataset) for side in (ours, theirs))
        distinct, usual = (len(np.unique(items)) for items in (shown, served))
        reason = f"in {len(ours)} lists of {self.cutoff}; served {usual} over {self.max_popularity_ratio:g}"
        bound, fits = usual / self.max_popularity_ratio, {"max_popularity_ratio": usual / (distinct or np.nan)}
        yield at_least("different items", distinct, threshold=bound, reason=reason, fits=fits)
        counts = dataset.train_count
        found, expected = (float(counts[items].mean()) if len(items) else 0.0 for items in (shown, served))
        reason = f"mean events of the shown items; {self.max_popularity_ratio:g} times the served {expected:.3g}"
        bound, fits = self.max_popularity_ratio * expected, {"max_popularity_ratio": found / (expected or np.nan)}
        yield at_most("popularity", found, threshold=bound, reason=reason, fits=fits)
        yield judge_score_spread(_spread(ours), _spread(theirs), min_ratio=self.min_score_spread_ratio)


@dataclass(frozen=True, kw_only=True)
class ShadowHits:
    """Stop a candidate whose lists for sampled requests hold fewer of the items that users chose afterwards.

    Each test user sends one request, at the border of the test part. Sampled requests are spread over time, with the
    histories of that moment, and active users send more of them.
    """

    non_inferiority_margin: float
    significance_level: float
    detectable_loss: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome; the mean is over users."""
        check, replayed = "hit rate", evidence.replay
        if not replayed.samples:
            return [untested(check, _NO_SAMPLES)]
        if not evidence.window.has_times:
            return [untested(check, NO_TIMES)]
        candidate, served = replayed.hits(evidence.judged.dataset)
        if not len(candidate):
            return [untested(check, "no user of a sampled request has events of the test part after it")]
        pair = PairedMetric(
            candidate, served, margin=self.non_inferiority_margin, setting="non_inferiority_margin"
        )  # fmt: skip
        return non_inferiority({check: pair}, self.significance_level, detectable_loss=self.detectable_loss)


def _fidelity(replayed: Replay, version: str) -> Iterable[Outcome]:
    """Check that the served release repeats its recorded answers. If it does not, that is no fault of the candidate."""
    same = [
        len({*sample.item_ids}.intersection(answer.item_ids)) / len(sample.item_ids)
        for sample, answer in zip(replayed.samples, replayed.served, strict=True)
        if sample.version == version and sample.item_ids
    ]
    if not same:
        return
    found, reason = float(np.mean(same)), f"share of the items of {len(same)} answers that the served release repeats"
    if found >= _MIN_FIDELITY:
        yield at_least("as answered", found, threshold=_MIN_FIDELITY, reason=reason)
    else:
        reason = f"{reason}: servers have other items or other settings now"
        yield untested("as answered", reason, value=found, threshold=_MIN_FIDELITY)


def _missing(side: Sequence[ReplayedAnswer], wanted: npt.NDArray[np.int64]) -> Float64Array:
    """Return the share of the requested items that each list lacks, [R]."""
    return 1 - np.array([len(answer.item_ids) for answer in side]) / wanted


def _shown_items(side: Sequence[ReplayedAnswer], cutoff: int, *, dataset: PreparedDataset) -> npt.NDArray[np.int64]:
    rows = IdMap(dataset.item_ids).rows([item for answer in side for item in answer.item_ids[:cutoff]])
    return rows[rows >= 0] + 1


def _spread(side: Sequence[ReplayedAnswer]) -> float:
    """Return the mean spread of the scores of all lists of two and more."""
    lists = [answer.answer.scores.astype(np.float64) for answer in side if answer.answer and len(answer.item_ids) > 1]
    if not lists:
        return 0.0
    return float(np.mean([relative_spread(row[None]) for row in lists]))
