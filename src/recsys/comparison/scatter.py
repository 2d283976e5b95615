"""Pictures of accuracy over something else: what is shown, or what a run took."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from recsys.comparison.differences import PART
from recsys.comparison.looks import looks_of
from recsys.comparison.measured import Measured
from recsys.comparison.plots import percent
from recsys.evaluation.significance import means
from recsys.presentation.labels import Label, label_points
from recsys.presentation.picture import Picture, canvas, headline


def against(runs: Sequence[Measured], baseline: Measured, metric: str, other: str) -> Picture:
    """Accuracy over what is shown: `coverage@10` or `popularity@10`.

    Args:
        runs: those without `other` are left out.
        baseline: one of the runs.
        metric: on the vertical axis, with its interval.
        other: on the horizontal axis.
    """
    drawn = [run for run in runs if PART + other in run.metrics]
    values = [run.metrics[PART + other] for run in drawn]
    is_coverage = other.startswith("coverage")
    most = max(drawn, key=lambda run: run.metrics[PART + metric]).name
    widest = (max if is_coverage else min)(drawn, key=lambda run: run.metrics[PART + other]).name
    what = "shows most of the corpus" if is_coverage else "shows the least popular items"
    wins = f"{most} has the highest {metric}{' and' if most == widest else f', {widest}'} {what}"
    corner = "up and to the right is better" if is_coverage else "up is more accurate, left is less popular"
    with canvas(3.6) as axis:
        if is_coverage:
            axis.set_xlabel(f"{other}: share of the corpus that is shown to anyone")
            axis.xaxis.set_major_formatter(percent)
            axis.margins(x=0.15)
        else:
            axis.set_xlabel(f"{other} (1: that of the average trained item; log scale)")
            _logarithmic(axis, values)
        headline(axis, wins, f"test {metric} with 95% interval; {corner}")
        said = _points(axis, drawn, values, baseline, metric)
    spoken = "; ".join(f"{text}, {other} {value:.4f}" for text, value in zip(said, values, strict=True))
    return Picture.of(axis, f"Scatter of test {metric} over {other}. {wins}. {spoken}.")


def cost(runs: Sequence[Measured], baseline: Measured, metric: str) -> Picture:
    """Accuracy over seconds.

    Args:
        runs: those that do not say what they took are left out.
        baseline: one of the runs.
        metric: on the vertical axis, with its interval.
    """
    drawn = [run for run in runs if run.state.get("seconds")]
    seconds = [float(run.state["seconds"]) for run in drawn]
    most = max(drawn, key=lambda run: run.metrics[PART + metric]).name
    fastest = drawn[seconds.index(min(seconds))].name
    wins = f"{most} has the highest {metric}{' and' if most == fastest else f', {fastest}'} took the least time"
    with canvas(3.6) as axis:
        axis.set_xlabel("seconds, evaluation included (log scale)")
        _logarithmic(axis, seconds)
        headline(axis, wins, f"test {metric} with 95% interval; up and to the left is better")
        said = _points(axis, drawn, seconds, baseline, metric)
    spoken = "; ".join(f"{text} in {value:,.0f} seconds" for text, value in zip(said, seconds, strict=True))
    return Picture.of(axis, f"Scatter of test {metric} over seconds. {wins}. {spoken}.")


def _points(
    axis: Axes, runs: Sequence[Measured], places: Sequence[float], baseline: Measured, metric: str
) -> list[str]:
    """Draw runs with intervals and names; what was drawn, in words."""
    style = looks_of(runs, baseline, metric)
    said, labels = [], []
    # Those with names last, so that they lie on the others.
    for run, x in sorted(zip(runs, places, strict=True), key=lambda pair: style[pair[0].name].is_named):
        look = style[run.name]
        (found,) = means(run.per_user, [metric])
        axis.plot(x, found.mean, look.mark, color=look.colour, markersize=9)
        if look.is_named:
            axis.plot([x, x], [found.low, found.high], color=look.colour, linewidth=1.2, alpha=0.7)
            labels.append(Label(run.name, x, found.mean, look.colour, found.low, found.high))
    axis.margins(y=0.2)
    axis.grid(axis="x")
    label_points(axis, labels)
    for run in runs:
        said.append(f"{run.name}: {metric} {run.metrics[PART + metric]:.4f}")
    return said


def _logarithmic(axis: Axes, values: Sequence[float]) -> None:
    """A short log axis with plain numbers at its ticks."""
    low, high = min(values) / 1.3, max(values) * 1.3
    steps = [base * 10.0**power for power in range(-3, 7) for base in (1, 2, 5)]
    inside = [step for step in steps if low <= step <= high]
    axis.set(xscale="log", xlim=(low, high))
    axis.set_xticks(inside, [f"{step:,g}" for step in inside])
    axis.xaxis.set_minor_locator(NullLocator())
