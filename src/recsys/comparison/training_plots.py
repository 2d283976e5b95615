"""Pictures of how runs learned and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recsys.comparison.differences import PART
from recsys.comparison.looks import looks_of
from recsys.comparison.measured import Measured
from recsys.comparison.plots import plain_log
from recsys.evaluation.significance import means
from recsys.presentation.labels import Label, label_ends, label_points
from recsys.presentation.picture import INK, Picture, canvas, figure_of, headline


def selecting_metric(runs: Sequence[Measured], metric: str) -> str | None:
    """What checkpoints were selected by, where all runs that have curves agree on it, else `metric` on validation.

    None where no run has such a curve.
    """
    learned = [run for run in runs if run.curves]
    asked = {run.config.get("evaluation", {}).get("metric") for run in learned}
    name = str(asked.pop()) if len(asked) == 1 else f"val/{metric}"
    return name if any(name in run.curves for run in learned) else None


def learning_curves(runs: Sequence[Measured], baseline: Measured, metric: str, curve: str) -> Picture:
    """Validation over steps, with a ring at the checkpoint that was selected.

    Args:
        runs: those without the curve are left out.
        baseline: one of the runs.
        metric: what best is measured by.
        curve: such as `val/ndcg@10`.
    """
    style = looks_of(runs, baseline, metric)
    drawn = [run for run in runs if curve in run.curves]
    said, rising = [], []
    with canvas() as axis:
        labels = []
        for run in sorted(drawn, key=lambda run: style[run.name].is_named):
            look, (steps, values) = style[run.name], run.curves[curve]
            axis.plot(steps, values, look.dashes, color=look.colour, marker=look.mark, markersize=3)
            best = values.index(max(values))
            axis.plot(steps[best], values[best], "o", color=look.colour, markersize=10, markerfacecolor="none")
            if look.is_named:
                labels.append(Label(run.name, steps[-1], values[-1], look.colour))
            if best == len(values) - 1 and len(values) > 1:
                rising.append(run.name)
            said.append(f"{run.name}: best {values[best]:.4f} at step {steps[best]:,} of {steps[-1]:,}")
        axis.set(ylim=(0, None), xlabel="training steps")
        wins = f"Still rising at the end: {', '.join(rising)}" if rising else "All runs had reached their best"
        headline(axis, wins, f"{curve.removeprefix('val/')} on validation; the ring is the best checkpoint")
        label_ends(axis, labels)
    return Picture(figure_of(axis), f"Line chart of {curve} over training steps. {wins}. {'; '.join(said)}.")


def cost(runs: Sequence[Measured], baseline: Measured, metric: str) -> Picture:
    """Accuracy over seconds.

    Args:
        runs: those that do not say what they took are left out.
        baseline: one of the runs.
        metric: on the vertical axis, with its interval.
    """
    style = looks_of(runs, baseline, metric)
    drawn = [run for run in runs if run.state.get("seconds")]
    labels: list[Label] = []
    said = []
    with canvas(height=3.4) as axis:
        for run in drawn:
            look, seconds = style[run.name], float(run.state["seconds"])
            (found,) = means(run.per_user, [metric])
            whisker: Any = [[found.mean - found.low], [found.high - found.mean]]
            axis.errorbar(seconds, found.mean, yerr=whisker, fmt="none", ecolor=look.colour, elinewidth=1.5)
            axis.plot(seconds, found.mean, look.mark, color=look.colour, markersize=9)
            said.append(f"{run.name}: {metric} {found.mean:.4f} in {seconds:,.0f} seconds")
            if look.is_named:
                labels.append(Label(run.name, seconds, found.mean, look.colour))
        axis.set(ylim=(0, None), xscale="log", xlabel="seconds, evaluation included (log scale)")
        plain_log(axis, [float(run.state["seconds"]) for run in drawn])
        axis.tick_params(labelcolor=INK)
        most = max(drawn, key=lambda run: run.metrics[PART + metric]).name
        fastest = min(drawn, key=lambda run: run.state["seconds"]).name
        wins = f"{most} has the highest {metric}{' and' if most == fastest else f', {fastest}'} took the least time"
        headline(axis, wins, f"test {metric} with 95% interval; up and to the left is better")
        label_points(axis, labels)
    return Picture(figure_of(axis), f"Scatter of test {metric} over seconds. {wins}. {'; '.join(said)}.")
