"""Gates on requests that users really made: both releases are asked again what a server has kept of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.core.types import Float64Array
from recsys.data.dataset import PreparedDataset
from recsys.operations.gates.evidence import Evidence
from recsys.operations.gates.non_inferiority import Paired, non_inferiority
from recsys.operations.gates.replay import Given, Replay
from recsys.operations.gates.verdict import Outcome, at_least, at_most, untested
from recsys.release.runtime.item_ids import IdMap

# Share of a list as it was answered that the same release must give again, for the replay to stand for serving.
_FAITHFUL = 0.9
_NONE = "skipped: no requests were sampled (serve.py samples.share=, and samples.folder= here)"


@dataclass(frozen=True)
class Shadow:
    """Answers what users ask about as the served release does.

    Test users are asked with the defaults; users ask with filters, features, histories that they bring, and any k. A
    release can refuse these, come back with less, or show everyone the same, and reach its metrics.

    Attributes:
        fewest: requests below which nothing is said.
        worse: what may be added to the served share of errors, of items that are missing from the lists, and of history
            items that are unknown.
        overlap: mean share of the served list that the candidate's list must hold.
        moved: times by which fewer different items may be shown, and more popular ones.
        spread: share of the served spread of scores within a list, relative to their size, that must be kept.
        slower: median of the times over those of the served release, request by request, at most.
        cutoff: of the lists, where it is about items shown.
    """

    fewest: int
    worse: float
    overlap: float
    moved: float
    spread: float
    slower: float
    cutoff: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome for each figure."""
        dataset, replayed = evidence.asked.dataset, evidence.replay
        if len(replayed.samples) < self.fewest:
            told = f"{len(replayed.samples)} sampled requests, expected {self.fewest}" if replayed.samples else _NONE
            yield untested("sampled requests", told)
            return
        yield from _as_answered(replayed, evidence.served.retriever.version)
        ours, theirs = replayed.candidate, replayed.served
        problems = [given.problem for given in ours if given.problem]
        for check, values, of in (
            ("errors", [[bool(given.problem) for given in side] for side in (ours, theirs)], problems[:1]),
            ("missing items", [_missing(side, replayed.num_wanted()) for side in (ours, theirs)], []),
        ):
            yield self._share(check, np.array(values[0], np.float64), np.array(values[1], np.float64), *of)
        both = [pair for pair in zip(ours, theirs, strict=True) if pair[0].answer and pair[1].answer]
        if not both:
            yield untested("lists", "no request is answered by both")
            return
        one, other = ([pair[which] for pair in both] for which in (0, 1))
        read = [(a.unknown, b.unknown) for a, b in both if not np.isnan(a.unknown)]
        if read:
            yield self._share("unknown history items", *np.array(read).T)
        yield from self._lists(one, other, dataset)
        ratio = float(np.median([a.seconds / b.seconds for a, b in both]))
        served_ms = 1000 * float(np.median([given.seconds for given in other]))
        yield at_most("times as long", ratio, self.slower, f"median over the requests; served {served_ms:.3f} ms")

    def _share(self, check: str, found: Float64Array, served: Float64Array, more: str = "") -> Outcome:
        told = f"{len(found)} requests, served {served.mean():.4f} and {self.worse:g}{': such as ' if more else ''}"
        return at_most(check, float(found.mean()), float(served.mean()) + self.worse, f"{told}{more}")

    def _lists(self, ours: Sequence[Given], theirs: Sequence[Given], dataset: PreparedDataset) -> Iterable[Outcome]:
        held = [
            len({*b.item_ids}.intersection(a.item_ids)) / len(b.item_ids)
            for a, b in zip(ours, theirs, strict=True)
            if b.item_ids
        ]
        if not held:
            yield untested("lists", "the served release shows nothing")
            return
        yield at_least("overlap", float(np.mean(held)), self.overlap, "mean share of the served list")
        shown, served = (_shown(side, self.cutoff, dataset) for side in (ours, theirs))
        different, before = (len(np.unique(items)) for items in (shown, served))
        told = f"in {len(ours)} lists of {self.cutoff}; served {before} over {self.moved:g}"
        yield at_least("different items", different, before / self.moved, told)
        counts = dataset.train_count
        now, then = (float(counts[items].mean()) if len(items) else 0.0 for items in (shown, served))
        told = f"mean events of what is shown; {self.moved:g} times the served {then:.3g}"
        yield at_most("popularity", now, self.moved * then, told)
        now, then = _spread(ours), _spread(theirs)
        told = f"first score less the last, over the mean size; {self.spread:g} of the served {then:.3g}"
        yield at_least("score spread", now, self.spread * then, told) if then > 0 else untested("score spread", told)


@dataclass(frozen=True)
class ShadowHits:
    """Finds what users did after they had asked, as often as the served release would have.

    Test users are asked once, at the border; these requests are spread over the time, with histories as they were, and
    as often as people ask.

    Attributes:
        margin: share of the served hit rate that may be lost.
        level: probability of failing by chance.
        noticed: untested where a loss of this share would be overlooked.
    """

    margin: float
    level: float
    noticed: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome; the mean is over users."""
        check, replayed = "hit rate", evidence.replay
        if not replayed.samples:
            return [untested(check, _NONE)]
        if not evidence.window.has_times:
            return [untested(check, "there are no times")]
        pair = Paired(*replayed.hits(evidence.asked.dataset), self.margin)
        if not len(pair.candidate):
            return [untested(check, "no user of a sampled request has events of the test part after it")]
        return non_inferiority({check: pair}, self.level, self.noticed)


def _as_answered(replayed: Replay, version: str) -> Iterable[Outcome]:
    """Whether asking again gives what users got, where the served release had answered them."""
    same = [
        len({*sample.item_ids}.intersection(given.item_ids)) / len(sample.item_ids)
        for sample, given in zip(replayed.samples, replayed.served, strict=True)
        if sample.version == version and sample.item_ids
    ]
    if not same:
        return
    found, told = float(np.mean(same)), f"share of what {len(same)} answers held that the served release gives again"
    if found >= _FAITHFUL:
        yield at_least("as answered", found, _FAITHFUL, told)
    else:
        yield untested("as answered", f"{told}: servers have other items by now, or other settings", found, _FAITHFUL)


def _missing(side: Sequence[Given], wanted: npt.NDArray[np.int64]) -> Float64Array:
    """Share of the items asked for that are not there, of each request."""
    return 1 - np.array([len(given.item_ids) for given in side]) / wanted


def _shown(side: Sequence[Given], cutoff: int, dataset: PreparedDataset) -> npt.NDArray[np.int64]:
    """item_idx of all that is shown; items that the data does not know are left out."""
    rows = IdMap(dataset.item_ids).rows([item for given in side for item in given.item_ids[:cutoff]])
    return rows[rows >= 0] + 1


def _spread(side: Sequence[Given]) -> float:
    """How far the scores of a list lie apart, relative to their size; mean over the lists of two and more."""
    lists = [given.answer.scores.astype(np.float64) for given in side if given.answer and len(given.item_ids) > 1]
    if not lists:
        return 0.0
    return float(np.mean([(row[0] - row[-1]) / max(float(np.abs(row).mean()), 1e-30) for row in lists]))
