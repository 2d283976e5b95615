"""Early stopping of the runs of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Hyperband:
    """Hyperband as W&B applies it: at every band a run continues if it is among the best share of all runs so far.

    An iteration is one validation. Bands lie at `min_iter * eta**k` iterations, or at `max_iter / eta**k` for k of 1 to
    `s`. At the last band that a run has reached, it stops if its best value so far (`strict`: its value at that band)
    is worse than the value there of the run in place `int(n / eta)`, counted from 0, of the n runs that reached it.

    Source: Li et al. 2018, Hyperband; the asynchronous rule is that of the package `sweeps` of W&B, version 0.3.0.

    Attributes:
        min_iter: first band; None if `max_iter` is given.
        max_iter: iteration that the bands divide; None if `min_iter` is given.
        s: number of bands below `max_iter`.
        eta: at each band, the best 1 / `eta` of the runs continue.
        strict: judge a run by its value at the band and not by its best value so far.
    """

    min_iter: int | None = None
    max_iter: int | None = None
    s: int = 1
    eta: float = 3.0
    strict: bool = False

    def bands(self, length: int) -> list[int]:
        """Return the iterations up to `length` at which runs are judged, ascending."""
        found = []
        if self.min_iter is not None:
            band = float(self.min_iter)
            while int(band) <= length:
                found.append(int(band))
                band *= self.eta
        else:
            assert self.max_iter is not None
            found = sorted(int(self.max_iter / self.eta**k) for k in range(1, self.s + 1))
        return [band for band in found if 1 <= band <= length]

    def stops(self, run: Sequence[float], runs: Sequence[Sequence[float]], *, maximize: bool) -> bool:
        """Return whether a run should stop.

        Args:
            run: values of the run, one for each iteration.
            runs: values of all runs of the sweep in any state, this one included.
            maximize: whether more is better.
        """
        sign = -1.0 if maximize else 1.0
        bands = self.bands(len(run))
        if not bands:
            return False
        band = bands[-1]
        reached = sorted(sign * values[band - 1] for values in runs if len(values) >= band)
        threshold = reached[int(len(reached) * (1.0 / self.eta))]
        own = sign * run[band - 1] if self.strict else min(sign * value for value in run)
        return own > threshold
