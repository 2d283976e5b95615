"""One colour and one mark per run, the same in all pictures of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recsys.reports.comparison.differences import PART
from recsys.reports.comparison.measured import MeasuredRun
from recsys.reports.presentation.colours import BASELINE, COLOURS, MARKS, OTHERS


@dataclass(frozen=True)
class RunStyle:
    """Style of a run in pictures. Runs that would crowd a picture are drawn without their names."""

    colour: str
    mark: str
    dashes: str
    is_named: bool


def styles_of(runs: Sequence[MeasuredRun], baseline: MeasuredRun, *, metric: str) -> Mapping[str, RunStyle]:
    """Return the style of each run by name: the baseline dark grey, the best five others coloured, the rest light grey.

    Args:
        runs: runs of the same test.
        baseline: one of the runs.
        metric: metric that ranks the runs, such as `recall@10`.
    """
    others = sorted((run for run in runs if run is not baseline), key=lambda run: -run.metrics[PART + metric])
    chosen = {run.name for run in others[: len(COLOURS)]}
    named = [run.name for run in runs if run.name in chosen]
    looks = {run.name: RunStyle(OTHERS, ".", "-", False) for run in runs}
    looks |= {
        name: RunStyle(colour, mark, "-", True) for name, colour, mark in zip(named, COLOURS, MARKS, strict=False)
    }
    looks[baseline.name] = RunStyle(BASELINE, "X", "--", True)
    return looks
