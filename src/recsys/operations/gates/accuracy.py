"""Gates on what is found for test users: against the release that is served, its own record, and popularity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.evaluation.significance import paired_bootstrap
from recsys.operations.gates.event_window import DAY
from recsys.operations.gates.evidence import Evidence
from recsys.operations.gates.non_inferiority import Paired, non_inferiority
from recsys.operations.gates.verdict import Outcome, at_least, untested


@dataclass(frozen=True)
class NotWorse:
    """Not worse than what is served, on the same users, in any slice.

    A better mean can hide a slice that is lost (TFX validates per slice for this reason). Differences are paired by
    user, and corrected over all metrics and slices together, so that an honest candidate is not stopped by the number
    of looks. The reference is measured now, on the same window: its old figures are of other users and other days.

    Attributes:
        metrics: of all users.
        slices: of items or users; the metric of each is `slice_metric`.
        slice_metric: recall at a cut-off, for slices and for types of action.
        margin: share of the served metric that may be lost.
        slice_margin: the same in a slice, and of each type of action.
        level: probability that any of the checks fails by chance.
        noticed: a slice is untested where a loss of this share would be overlooked.
    """

    metrics: Sequence[str]
    slices: Sequence[str]
    slice_metric: str
    margin: float
    slice_margin: float
    level: float
    noticed: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome for each metric and slice."""
        candidate, served = evidence.candidate.per_user, evidence.served.per_user
        margins = dict.fromkeys(self.metrics, self.margin)
        names = [f"{name}/{self.slice_metric}" for name in self.slices]
        names += [name for name in candidate if "=" in name and name.endswith(f"/{self.slice_metric}")]
        margins |= dict.fromkeys(names, self.slice_margin)
        pairs = {}
        for name, margin in margins.items():
            rows = ~np.isnan(candidate[name])
            pairs[name] = Paired(candidate[name][rows], served[name][rows], margin)
        return non_inferiority(pairs, self.level, self.noticed)


@dataclass(frozen=True)
class KeepsRecord:
    """Not far below what the served release reached when it was made.

    Where the newest events are corrupted, candidate and served release fail on them together, and no comparison of the
    two tells. Slices that the served release cannot serve at all by now, such as items that are new since, have no
    other reference either.

    Attributes:
        metrics: of the release, over the items of its index; slices included.
        share: of the record that must be kept; below one, since every window is another.
        level: probability that any of the checks fails by chance.
        noticed: a check is untested where a loss of this share would be overlooked.
        fewest_users: a check of fewer is untested: the record is of a few others, and a dozen who all miss would look
            as if nothing were left to chance.
    """

    metrics: Sequence[str]
    share: float
    level: float
    noticed: float
    fewest_users: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome for each metric."""
        manifest, pairs, missing = evidence.served.retriever.manifest, {}, []
        for name in self.metrics:
            known = manifest.record(name)
            if known is None:
                missing.append(untested(name, "the served release has no such figure"))
                continue
            values = evidence.candidate.per_user[name]
            values = values[~np.isnan(values)]
            if len(values) < self.fewest_users:
                missing.append(untested(name, f"{len(values)} users, fewer than {self.fewest_users}"))
                continue
            pairs[name] = Paired(values, _as_users(known, values), 1 - self.share)
        return [*non_inferiority(pairs, self.level, self.noticed), *missing]


def _as_users(mean: float, found: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Users who could have this mean of a metric up to 1: it is left to chance as what it is compared with is.

    Their variance relative to their mean is that of what was `found` now; where that is nothing they are as far apart
    as they can be, some with all and the others with nothing.
    """
    number = len(found)
    users = np.random.default_rng(0).permutation(np.clip(mean * number - np.arange(number), 0.0, 1.0))
    spread, most = found.var() * mean / max(found.mean(), 1e-9), users.var()
    share = min(1.0, float(np.sqrt(spread / most))) if found.any() and most else 1.0
    return np.asarray(mean + share * (users - users.mean()))


@dataclass(frozen=True)
class Predictable:
    """The served release foresees the newest events about as well as those before them.

    Events whose items, users or labels were mixed up cannot be foreseen by a model that never saw them, however they
    are counted; a day of them hides in the mean of a longer test part. Where all of the test part is new, there is
    nothing to compare with: what a release reached when it was made is no measure of how it ages, and `KeepsRecord`
    asks that of the candidate.

    Attributes:
        metric: recall at a cut-off.
        share: of the reference that must be kept.
        level: probability of failing by chance.
        noticed: untested where a loss of this share would be overlooked.
    """

    metric: str
    share: float
    level: float
    noticed: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome."""
        check, side = f"served {self.metric} on the newest", evidence.served
        if not evidence.window.has_times:
            return [untested(check, "there are no times")]
        new, before = evidence.asked.relevant_since(evidence.window.begin)
        if not np.diff(before.offsets).any():
            return [untested(check, "the served release is older than all of the test part")]
        found = side.measure(new)[1][self.metric]
        usual = float(side.measure(before)[1][self.metric].mean())
        pair = Paired(found, np.full(len(found), usual), 1 - self.share)
        return non_inferiority({check: pair}, self.level, self.noticed)


@dataclass(frozen=True)
class BeatsPopularity:
    """Better than one list of popular items for everyone, and not below fixed floors.

    An absolute bar that needs no figures of this data: a model that learned nothing does not pass it, whatever is
    served. Floors are for those who know their data.

    Attributes:
        metric: of all users.
        factor: times what the popular list reaches.
        floors: metric -> least value.
    """

    metric: str
    factor: float
    floors: Mapping[str, float]

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome for popularity, and one for each floor."""
        found = float(evidence.candidate.per_user[self.metric].mean())
        popular = float(evidence.popular[self.metric].mean())
        yield at_least(self.metric, found, self.factor * popular, f"{self.factor:g} times popularity's {popular:.4f}")
        for name, least in self.floors.items():
            value = evidence.candidate.metrics.get(name)
            if value is None:
                yield untested(name, "the candidate has no such figure")
            else:
                yield at_least(name, value, least, "fixed floor")


@dataclass(frozen=True)
class NotTooGood:
    """Not better than one retraining can explain.

    A model that has seen the answers is far better than any honest one. The gain is measured over items that the served
    release knows, since what it cannot know is a gain that is honest and large; so is what it lost by its age.

    Attributes:
        metric: recall at a cut-off.
        max_gain: largest share gained over the served release that is believed.
        per_day: what is added to that for each day between the newest event of the served release and that of the data.
        least: gain in the metric itself below which nothing is suspected.
    """

    metric: str
    max_gain: float
    per_day: float
    least: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """One outcome."""
        known = np.zeros(evidence.asked.dataset.num_items + 1, bool)
        known[evidence.served.item_idx] = True
        known[0] = False
        relevant = evidence.asked.relevant_among(known)
        (found, served), check = (
            (side.measure(relevant)[1][self.metric] for side in (evidence.candidate, evidence.served)),
            f"gain in {self.metric}",
        )
        if not len(found):
            return [untested(check, "no test user wants an item that the served release knows")]
        until, window = evidence.served.retriever.manifest.data.get("until"), evidence.window
        days = 0.0 if until is None or not window.has_times else (int(window.time.max()) - until) / DAY
        most = self.max_gain + self.per_day * max(0.0, days)
        ((_, low, _, _),) = paired_bootstrap((found - (1 + most) * served)[:, None])
        gain = float(found.mean() / served.mean() - 1) if served.mean() else np.inf
        told = f"{found.mean():.4f} against {served.mean():.4f} on items that both can know"
        suspicious = low > 0 and found.mean() - served.mean() > self.least
        return [Outcome(check, gain, most, "fail" if suspicious else "pass", told)]
