"""Paired differences between runs, with their significance."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from recsys.core.errors import UserError, nearest
from recsys.evaluation.significance import Comparison, compare_runs, holm
from recsys.evaluation.slices import SLICE_METRICS
from recsys.reports.comparison.measured import MeasuredRun

LEVEL = 0.05
PART = "test/"
Judgement = Literal["better", "worse", "unclear"]


@dataclass(frozen=True)
class Difference:
    """Gain of `run` over `baseline` in one metric.

    Attributes:
        paired: both means, their difference with its interval, and the p-value of this comparison alone.
        p_value: p-value corrected for all comparisons of the same call.
    """

    run: str
    baseline: str
    paired: Comparison
    p_value: float

    @property
    def verdict(self) -> Judgement:
        """`better` or `worse` if the corrected p-value is below 0.05, else `unclear`."""
        if self.p_value >= LEVEL:
            return "unclear"
        return "better" if self.paired.difference > 0 else "worse"

    @property
    def relative(self) -> tuple[float, float, float] | None:
        """Difference and its interval as shares of the baseline's mean; None if that mean is zero."""
        pair = self.paired
        if not pair.first:
            return None
        return pair.difference / pair.first, pair.low / pair.first, pair.high / pair.first


def differences(
    runs: Sequence[MeasuredRun], metrics: Sequence[str], *, baseline: MeasuredRun, all_pairs: bool = False
) -> list[Difference]:
    """Compare runs by a paired bootstrap over users, with p-values corrected by Holm over all comparisons.

    Args:
        runs: runs of the same test.
        metrics: columns of `per_user.parquet`, such as `recall@10` or `tail/recall@10`.
        baseline: run that each other run is compared with.
        all_pairs: compare every two runs instead, the later with the earlier one.

    Returns:
        Differences by metric, in the order given, and within a metric by run; slices without users are left out.
    """
    pairs = list(itertools.combinations(runs, 2)) if all_pairs else [(baseline, r) for r in runs if r is not baseline]
    found = {
        (one.name, other.name): {c.metric: c for c in compare_runs(one.per_user, other.per_user, metrics=metrics)}
        for one, other in pairs
    }
    keys = [(metric, pair) for metric in metrics for pair in found if metric in found[pair]]
    corrected = holm({repr(key): found[key[1]][key[0]].p_value for key in keys})
    return [
        Difference(other, one, found[one, other][metric], corrected[repr((metric, (one, other)))])
        for metric, (one, other) in keys
    ]


def chosen_metrics(runs: Sequence[MeasuredRun], asked: Sequence[str]) -> list[str]:
    """Return the columns of `per_user.parquet` for the requested metrics.

    Args:
        runs: runs of the same test.
        asked: metrics such as `test/recall@10`; empty for the usual ones that all runs have.

    Raises:
        UserError: If a run does not have the metric for each user.
    """
    common = {name for name in runs[0].columns if all(name in r.columns and PART + name in r.metrics for r in runs)}
    if not common:
        raise UserError("the runs have no metric of each test user in common; expected columns such as recall@10")
    if not asked:
        asked = [name for name in ("recall@10", "ndcg@10", "recall@100") if name in common] or sorted(common)[:1]
    for name in asked:
        if name.removeprefix(PART) not in common:
            raise UserError(
                f"metric: not every run has '{name}' for each test user{nearest(name, (PART + c for c in common))}"
            )
    return [name.removeprefix(PART) for name in asked]


def slice_metrics(runs: Sequence[MeasuredRun], metric: str) -> list[str]:
    """Return the columns with the metrics of slices at the cut-off of `metric` that all runs have."""
    cutoff = metric.rpartition("@")[2]
    names = [f"{name}@{cutoff}" for name in SLICE_METRICS]
    return [name for name in names if all(name in run.columns for run in runs)]
