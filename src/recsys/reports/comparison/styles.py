"""One colour and one mark for a run in all pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recsys.reports.comparison.differences import PART
from recsys.reports.comparison.measured import Measured
from recsys.reports.presentation.colours import BASELINE, COLOURS, MARKS, OTHERS


@dataclass(frozen=True)
class Look:
    """How a run is drawn; runs without a name are those that would crowd a picture."""

    colour: str
    mark: str
    dashes: str
    is_named: bool


def looks_of(runs: Sequence[Measured], baseline: Measured, metric: str) -> Mapping[str, Look]:
    """The baseline in dark grey, the best five others in colours, the rest in light grey; by name.

    Args:
        runs: of the same test.
        baseline: one of them.
        metric: what best is measured by, such as `recall@10`.
    """
    others = sorted((run for run in runs if run is not baseline), key=lambda run: -run.metrics[PART + metric])
    chosen = {run.name for run in others[: len(COLOURS)]}
    named = [run.name for run in runs if run.name in chosen]
    looks = {run.name: Look(OTHERS, ".", "-", False) for run in runs}
    looks |= {name: Look(colour, mark, "-", True) for name, colour, mark in zip(named, COLOURS, MARKS, strict=False)}
    looks[baseline.name] = Look(BASELINE, "X", "--", True)
    return looks
