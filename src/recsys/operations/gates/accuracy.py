"""Gates on accuracy for test users: losses against several references, and implausible gains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recsys.core.types import Float64Array
from recsys.evaluation.significance import paired_bootstrap
from recsys.operations.gates.event_window import DAY, NO_TIMES
from recsys.operations.gates.evidence import Evidence
from recsys.operations.gates.non_inferiority import PairedMetric, non_inferiority
from recsys.operations.gates.verdict import Outcome, Status, at_least, untested


@dataclass(frozen=True, kw_only=True)
class NotWorse:
    """Stop a candidate that is worse than the served release on the same users, in total or in any slice.

    A better mean can hide a slice that got much worse (TFX validates each slice for this reason). Differences are
    paired by user and corrected for the number of metrics and slices, so that honest candidates are not stopped by the
    number of tests. Both releases are measured now, on the same window, because older figures are about other users and
    days.
    """

    metrics: Sequence[str]
    slices: Sequence[str]
    slice_metric: str
    non_inferiority_margin: float
    slice_non_inferiority_margin: float
    significance_level: float
    detectable_loss: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome for each metric and slice."""
        candidate, served = evidence.candidate.per_user, evidence.served.per_user
        margins = dict.fromkeys(self.metrics, self.non_inferiority_margin)
        names = [f"{name}/{self.slice_metric}" for name in self.slices]
        names += [name for name in candidate if "=" in name and name.endswith(f"/{self.slice_metric}")]
        margins |= dict.fromkeys(names, self.slice_non_inferiority_margin)
        pairs = {}
        for name, margin in margins.items():
            rows = ~np.isnan(candidate[name])
            setting = "non_inferiority_margin" if name in self.metrics else "slice_non_inferiority_margin"
            pairs[name] = PairedMetric(candidate[name][rows], served[name][rows], margin=margin, setting=setting)
        return non_inferiority(pairs, self.significance_level, detectable_loss=self.detectable_loss)


@dataclass(frozen=True, kw_only=True)
class KeepsRecord:
    """Stop a candidate that stays far below the metrics that the served release reached when it was made.

    If the newest events are corrupted, the candidate and the served release both fail on them, and a comparison of the
    two shows nothing. Slices that the served release cannot serve now, such as items newer than it, have no other
    reference either.
    """

    metrics: Sequence[str]
    min_ratio: float
    significance_level: float
    detectable_loss: float
    min_users: int

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome for each metric."""
        manifest, pairs, missing = evidence.served.retriever.manifest, {}, []
        for name in self.metrics:
            known = manifest.record(name)
            if known is None:
                missing.append(untested(name, "the served release has no such metric"))
                continue
            values = evidence.candidate.per_user[name]
            values = values[~np.isnan(values)]
            if len(values) < self.min_users:
                missing.append(untested(name, f"{len(values)} users, fewer than {self.min_users}"))
                continue
            simulated = _simulated_users(known, values)
            pairs[name] = PairedMetric(values, simulated, margin=1 - self.min_ratio, setting="min_ratio")
        return [*non_inferiority(pairs, self.significance_level, detectable_loss=self.detectable_loss), *missing]


def _simulated_users(mean: float, found: Float64Array) -> Float64Array:
    """Return values of users with this mean of a metric that is at most 1, so that the record has a variance too.

    Their variance relative to their mean is that of `found`. If `found` has none, users differ as much as they can:
    some have 1 and the others 0.
    """
    number = len(found)
    users = np.random.default_rng(0).permutation(np.clip(mean * number - np.arange(number), 0.0, 1.0))
    spread, most = found.var() * mean / max(found.mean(), 1e-9), users.var()
    share = min(1.0, float(np.sqrt(spread / most))) if found.any() and most else 1.0
    return np.asarray(mean + share * (users - users.mean()))


@dataclass(frozen=True, kw_only=True)
class Predictable:
    """Stop a candidate if the served release predicts the newest events much worse than the events before them.

    If items, users or labels of the newest events were mixed up, a model that never saw them cannot predict them. In
    the mean of a longer test part, one such day would not be visible. If the whole test part is newer than the served
    release, there is nothing to compare with, because the metrics of a release at its creation do not show how it ages.
    The gate `record` compares the candidate with those.
    """

    metric: str
    min_ratio: float
    significance_level: float
    detectable_loss: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome."""
        check, side = f"served {self.metric} on the newest", evidence.served
        if not evidence.window.has_times:
            return [untested(check, NO_TIMES)]
        new, before = evidence.judged.relevant_since(evidence.window.begin)
        if not np.diff(before.offsets).any():
            return [untested(check, "the served release is older than all of the test part")]
        found = side.measure(new)[1][self.metric]
        usual = float(side.measure(before)[1][self.metric].mean())
        pair = PairedMetric(found, np.full(len(found), usual), margin=1 - self.min_ratio, setting="min_ratio")
        return non_inferiority({check: pair}, self.significance_level, detectable_loss=self.detectable_loss)


@dataclass(frozen=True, kw_only=True)
class BeatsPopularity:
    """Stop a candidate that is no better than one list of popular items for everyone, or below a fixed floor.

    This comparison needs no earlier figures. A model that learned nothing fails it even if nothing is served. Floors
    are for teams that know the usual figures of their data.
    """

    metric: str
    min_ratio: float
    floors: Mapping[str, float]

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome for popularity, and one for each floor."""
        found = float(evidence.candidate.per_user[self.metric].mean())
        popular = float(evidence.popular[self.metric].mean())
        reason = f"{self.min_ratio:g} times popularity's {popular:.4f}"
        fits: Mapping[str, object] = {"min_ratio": found / (popular or np.nan)}
        yield at_least(self.metric, found, threshold=self.min_ratio * popular, reason=reason, fits=fits)
        for name, floor in self.floors.items():
            value = evidence.candidate.metrics.get(name)
            if value is None:
                yield untested(name, "the candidate has no such metric")
            else:
                fits = {"floors": {name: value}}
                yield at_least(name, value, threshold=floor, reason="fixed floor", fits=fits)


@dataclass(frozen=True, kw_only=True)
class NotTooGood:
    """Stop a candidate whose gain over the served release is larger than one retraining can explain.

    A model that was trained on the answers is far better than any honest one. The gain is measured on items that the
    served release knows, because items that it cannot know bring a gain that is large and honest. An old served release
    has lost accuracy, which explains a larger gain.
    """

    metric: str
    max_gain: float
    max_gain_per_day: float
    min_absolute_gain: float

    def judge(self, evidence: Evidence) -> Iterable[Outcome]:
        """Return one outcome."""
        known = np.zeros(evidence.judged.dataset.num_items + 1, bool)
        known[evidence.served.item_idx] = True
        known[0] = False
        relevant = evidence.judged.relevant_among(known)
        found, served = (
            side.measure(relevant)[1][self.metric] for side in (evidence.candidate, evidence.served)
        )  # fmt: skip
        check = f"gain in {self.metric}"
        if not len(found):
            return [untested(check, "no test user has a relevant item that the served release knows")]
        until, window = evidence.served.retriever.manifest.data.get("until"), evidence.window
        days = 0.0 if until is None or not window.has_times else (int(window.time.max()) - until) / DAY
        most = self.max_gain + self.max_gain_per_day * max(0.0, days)
        ((_, low, _, _),) = paired_bootstrap((found - (1 + most) * served)[:, None])
        gain = float(found.mean() / served.mean() - 1) if served.mean() else np.inf
        reason = f"{found.mean():.4f} against {served.mean():.4f} on items that both releases can know"
        is_suspicious = low > 0 and found.mean() - served.mean() > self.min_absolute_gain
        fits = {"max_gain": gain - most + self.max_gain} if is_suspicious and np.isfinite(gain) else {}
        status: Status = "fail" if is_suspicious else "pass"
        return [Outcome(check, gain, threshold=most, status=status, reason=reason, bound="most", fits=fits)]
