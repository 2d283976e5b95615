"""Is a mean over users significantly below a bound, and would it have been noticed? R users, M checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from recsys.core.types import Float64Array
from recsys.evaluation.significance import holm, paired_bootstrap
from recsys.operations.gates.verdict import Outcome, untested

_POWER = 0.8


@dataclass(frozen=True)
class Paired:
    """One metric of the same users, of the candidate and of what it is compared with; both float64 [R], without nan.

    Attributes:
        candidate: of each user.
        reference: of each user; all alike where the reference is one number.
        margin: share of the reference's mean that may be lost.
    """

    candidate: Float64Array
    reference: Float64Array
    margin: float

    @property
    def excess(self) -> Float64Array:
        """Candidate less what is left of the reference after the margin: a mean below zero is too little."""
        return self.candidate - (1 - self.margin) * self.reference


def non_inferiority(
    pairs: Mapping[str, Paired], level: float, noticed: float, num_samples: int = 4_000
) -> list[Outcome]:
    """Fails the pairs whose mean is below the reference's by more than the margin, beyond chance.

    A one-sided paired bootstrap of each, corrected for all of them together (Holm).

    Where so few users are of a slice that even the loss of `noticed` would go unnoticed more often than one time in
    five, nothing is said of it.

    Args:
        pairs: name -> values.
        level: probability that any of them fails by chance, at the edge of its margin.
        noticed: share of the reference's mean whose loss must be noticeable.
        num_samples: of the bootstrap.
    """
    tellable = {name: pair for name, pair in pairs.items() if len(pair.candidate) and pair.reference.mean() > 0}
    p_values = holm({name: _p_value(pair, num_samples) for name, pair in tellable.items()})
    return [
        _outcome(name, pair, p_values[name], level, noticed, len(tellable))
        if name in tellable
        else untested(name, _nothing(pair))
        for name, pair in pairs.items()
    ]


def noticeable(pair: Paired, level: float) -> float:
    """The share of the reference's mean whose loss would be found with probability .8, by a normal approximation."""
    quantiles = NormalDist().inv_cdf(1 - level) + NormalDist().inv_cdf(_POWER)
    # One user says nothing of the spread.
    error = float(pair.excess.std(ddof=1)) / len(pair.excess) ** 0.5 if len(pair.excess) > 1 else np.inf
    return pair.margin + quantiles * error / float(pair.reference.mean())


def _p_value(pair: Paired, num_samples: int) -> float:
    ((mean, _, _, two_sided),) = paired_bootstrap(pair.excess[:, None], num_samples)
    return two_sided / 2 if mean < 0 else 1 - two_sided / 2


def _outcome(name: str, pair: Paired, p_value: float, level: float, noticed: float, num_tests: int) -> Outcome:
    found, expected = float(pair.candidate.mean()), float(pair.reference.mean())
    threshold = (1 - pair.margin) * expected
    told = f"{found / expected - 1:+.1%} against {expected:.4f}, {len(pair.candidate)} users, p {p_value:.2g}"
    if p_value < level:
        return Outcome(name, found, threshold, "fail", told)
    least = noticeable(pair, level / num_tests)
    if least > noticed:
        return untested(name, f"{told}: too few to notice a loss of {noticed:.0%}", found, threshold)
    return Outcome(name, found, threshold, "pass", f"{told}; a loss of {least:.0%} would be noticed")


def _nothing(pair: Paired) -> str:
    if not len(pair.candidate):
        return "no test user is of this slice"
    return f"the reference finds nothing for {len(pair.candidate)} users, so nothing can be lost"
