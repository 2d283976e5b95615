"""Test if a mean over users is significantly below a bound, with the power of that test. R users, M checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from statistics import NormalDist

import numpy as np

from recsys.core.types import Float64Array
from recsys.evaluation.significance import holm, paired_bootstrap
from recsys.operations.gates.verdict import Outcome, untested

_POWER = 0.8


@dataclass(frozen=True)
class PairedMetric:
    """One metric of the same users, for the candidate and for its reference.

    Attributes:
        candidate: value of each user, float64 [R], without nan.
        reference: value of each user, float64 [R], without nan; constant if the reference is one number.
        margin: non-inferiority margin, as a share of the reference's mean.
        setting: parameter of the gate that sets the margin, or, if it begins with `min_`, one minus the margin.
    """

    candidate: Float64Array
    reference: Float64Array
    _: KW_ONLY
    margin: float
    setting: str = ""

    @property
    def excess(self) -> Float64Array:
        """Candidate minus the reference less its margin, [R]; a mean below zero is inferior."""
        return self.candidate - (1 - self.margin) * self.reference


def non_inferiority(
    pairs: Mapping[str, PairedMetric], level: float, *, detectable_loss: float, num_samples: int = 4_000
) -> list[Outcome]:
    """Return an outcome for each pair; it fails if its mean is significantly below the reference's by the margin.

    The test is a one-sided paired bootstrap of each pair, with Holm's correction for the number of pairs. If a pair has
    so few users that a loss of `detectable_loss` would be missed in more than one of five cases, it is untested.

    Args:
        pairs: name -> values.
        level: probability that at least one pair fails by chance if each is exactly at its margin.
        detectable_loss: share of the reference's mean.
        num_samples: bootstrap samples.
    """
    testable = {name: pair for name, pair in pairs.items() if len(pair.candidate) and pair.reference.mean() > 0}
    p_values = holm({name: _p_value(pair, num_samples) for name, pair in testable.items()})
    outcomes = []
    for name, pair in pairs.items():
        if name in testable:
            smallest = smallest_detectable_loss(pair, level / len(testable))
            is_inferior, has_power = p_values[name] < level, smallest <= detectable_loss
            outcome = _outcome(name, pair, p_value=p_values[name])
            if is_inferior:
                kept = float(pair.candidate.mean()) / float(pair.reference.mean())
                fit = kept if pair.setting.startswith("min_") else 1 - kept
                outcomes.append(replace(outcome, status="fail", fits={pair.setting: fit} if pair.setting else {}))
            elif has_power:
                reason = f"{outcome.reason}; a loss of {smallest:.0%} would be detected"
                outcomes.append(replace(outcome, reason=reason))
            else:
                reason = f"{outcome.reason}: too few users to detect a loss of {detectable_loss:.0%}"
                outcomes.append(replace(outcome, status="untested", reason=reason))
        else:
            outcomes.append(untested(name, _why_untestable(pair)))
    return outcomes


def smallest_detectable_loss(pair: PairedMetric, level: float) -> float:
    """Return the share of the reference's mean whose loss is found with probability .8, by a normal approximation."""
    quantiles = NormalDist().inv_cdf(1 - level) + NormalDist().inv_cdf(_POWER)
    # One user shows nothing about the spread.
    error = float(pair.excess.std(ddof=1)) / len(pair.excess) ** 0.5 if len(pair.excess) > 1 else np.inf
    return pair.margin + quantiles * error / float(pair.reference.mean())


def _p_value(pair: PairedMetric, num_samples: int) -> float:
    ((mean, _, _, two_sided),) = paired_bootstrap(pair.excess[:, None], num_samples)
    return two_sided / 2 if mean < 0 else 1 - two_sided / 2


def _outcome(name: str, pair: PairedMetric, *, p_value: float) -> Outcome:
    found, expected = float(pair.candidate.mean()), float(pair.reference.mean())
    reason = f"{found / expected - 1:+.1%} against {expected:.4f}, {len(pair.candidate)} users, p {p_value:.2g}"
    bound = (1 - pair.margin) * expected
    return Outcome(name, found, threshold=bound, status="pass", reason=reason, bound="least")


def _why_untestable(pair: PairedMetric) -> str:
    if not len(pair.candidate):
        return "no test user is in this slice"
    return f"the reference finds nothing for {len(pair.candidate)} users, so nothing can be lost"
