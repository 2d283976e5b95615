"""Sequential test of a canary: a confidence sequence for the relative difference of two rates of engagement.

The users are the units, because answers of one user are alike. A rate is the share of answers with engagement, a ratio
of sums over users; its variance comes from the delta method over users (Deng, Knoblich and Lu, "Applying the Delta
Method in Metric Analytics", KDD 2018). The difference of the logarithms of two such rates, at every moment of the
experiment, has independent increments in its information 1 / variance, also while users come again (Jennison and
Turnbull, "Group-Sequential Analysis Incorporating Covariate Information", JASA 1997). So the one-sided asymptotic
confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and
asymptotic confidence sequences" (Annals of Statistics 2024, appendix B.1) holds in information time: one may look
after every answer, and the probability of a wrong decision at any time is at most alpha.

Shapes: any leading shape, the same for all arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from recsys.core.types import Float64Array

# Below so many users, and answers with and without engagement, of a version, the normal approximation is not used.
FEWEST = 50


class Sums(NamedTuple):
    """Sums over the users of one version: their number, answers n, answers with engagement y, and products.

    Each is float64 of the same shape.
    """

    users: Float64Array
    n: Float64Array
    y: Float64Array
    nn: Float64Array
    yy: Float64Array
    ny: Float64Array

    @classmethod
    def of(cls, n: Float64Array, y: Float64Array) -> Sums:
        """Return the sums of users with n answers each, y of them with engagement; the users are the last axis."""
        products = (n, y, n * n, y * y, n * y)
        return cls(np.sum(n > 0, axis=-1, dtype=np.float64), *(np.sum(one, axis=-1) for one in products))

    @property
    def is_enough(self) -> npt.NDArray[np.bool_]:
        """True where the normal approximation can be used."""
        return (np.minimum(self.y, self.n - self.y) >= FEWEST) & (self.users >= FEWEST)

    def log_rate(self) -> tuple[Float64Array, Float64Array]:
        """Return the logarithm of the rate, and its variance."""
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = self.y / self.n
            scatter = self.yy - 2 * rate * self.ny + rate * rate * self.nn
            unbiased = self.users / np.maximum(self.users - 1, 1)
            return np.log(rate), scatter * unbiased / (self.y * self.y)


class Bounds(NamedTuple):
    """Relative difference of the canary's rate, and its one-sided lower and upper confidence sequences.

    `p_worse` is the always-valid p-value of "the canary is not worse", `p_better` that of "the canary loses the margin
    or more"; both are doubled, because there are two. Each is below alpha if its bound is beyond its limit, and may be
    used at any time. Without enough data the bounds are infinite and the p-values 1.
    """

    difference: Float64Array
    lower: Float64Array
    upper: Float64Array
    p_worse: Float64Array
    p_better: Float64Array


@dataclass(frozen=True, kw_only=True)
class SequentialTest:
    """Settings of the test.

    Attributes:
        margin: relative loss of engagement that is acceptable (non-inferiority).
        alpha: probability of a wrong decision at any time, half of it to roll back a version that is not worse, and
            half to promote one that loses the margin or more.
    """

    margin: float = 0.05
    alpha: float = 0.05

    @property
    def _rho2(self) -> float:
        """Parameter of the mixture that makes the bound tightest when it is as wide as the margin."""
        log = math.log(1 / self.alpha)
        k = 2 * log + math.log1p(2 * log)
        information = 2 * (k + 1) / k * math.log1p(math.sqrt(k + 1) / self.alpha) / self._log_margin**2
        return k / information

    @property
    def _log_margin(self) -> float:
        return -math.log1p(-self.margin)

    def bounds(self, canary: Sums, control: Sums) -> Bounds:
        """Return what is known of the difference now."""
        log_canary, var_canary = canary.log_rate()
        log_control, var_control = control.log_rate()
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            is_enough = canary.is_enough & control.is_enough & (var_canary + var_control > 0)
            information = np.where(is_enough, 1 / (var_canary + var_control), 1.0)
            estimate = np.where(is_enough, log_canary - log_control, 0.0)
            growth = information * self._rho2 + 1
            root = np.sqrt(growth)
            half = np.sqrt(2 * growth / (information**2 * self._rho2) * np.log1p(root / self.alpha))
            half = np.where(is_enough, half, np.inf)

            def p_value(excess: Float64Array) -> Float64Array:
                exponent = (np.maximum(excess, 0) * information) ** 2 * self._rho2 / (2 * growth)
                return np.where(is_enough, np.minimum(1.0, root / np.expm1(exponent)), 1.0)

            return Bounds(
                np.expm1(estimate),
                np.expm1(estimate - half),
                np.expm1(estimate + half),
                p_value(-estimate),
                p_value(estimate + self._log_margin),
            )
