"""Learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recsys.reports.comparison.measured import MeasuredRun
from recsys.reports.comparison.styles import RunStyle
from recsys.reports.presentation.labels import Label, label_ends
from recsys.reports.presentation.picture import Picture, canvas, headline


def selecting_metric(runs: Sequence[MeasuredRun], metric: str) -> str | None:
    """Return the metric that selected checkpoints if all runs with curves agree on it, else `metric` on validation.

    Returns None if no run has such a curve.
    """
    learned = [run for run in runs if run.curves]
    asked = {run.config.get("evaluation", {}).get("metric") for run in learned}
    name = str(asked.pop()) if len(asked) == 1 and None not in asked else f"val/{metric}"
    return name if any(name in run.curves for run in learned) else None


def learning_curves(runs: Sequence[MeasuredRun], style: Mapping[str, RunStyle], *, curve: str) -> Picture:
    """Draw a validation metric over training steps, with a ring at the selected checkpoint.

    Args:
        runs: runs to draw; runs without the curve are left out.
        style: style of each run, by name.
        curve: metric, such as `val/ndcg@10`.
    """
    drawn = [run for run in runs if curve in run.curves]
    details, rising = [], []
    with canvas() as axis:
        labels = []
        for run in sorted(drawn, key=lambda run: style[run.name].is_named):
            look, (steps, values) = style[run.name], run.curves[curve]
            axis.plot(steps, values, look.dashes, color=look.colour, marker=look.mark, markersize=3)
            best = values.index(max(values))
            if look.is_named:
                axis.plot(steps[best], values[best], "o", color=look.colour, markersize=10, markerfacecolor="none")
                labels.append(Label(run.name, steps[-1], values[-1], look.colour))
            if best == len(values) - 1 and len(values) > 1:
                rising.append(run.name)
            details.append(f"{run.name}: best {values[best]:.4f} at step {steps[best]:,} of {steps[-1]:,}")
        axis.set(ylim=(0, None), xlabel="training steps")
        if len(rising) > 3:
            wins = f"{len(rising)} of {len(drawn)} runs were still rising at the end"
        elif rising:
            wins = f"Still rising at the end: {', '.join(rising)}"
        else:
            wins = "All runs had reached their best before the end"
        headline(axis, wins, caption=f"{curve.removeprefix('val/')} on validation; the ring is the best checkpoint")
        label_ends(axis, labels)
    return Picture.of(axis, f"Line chart of {curve} over training steps. {wins}. {'; '.join(details)}.")
