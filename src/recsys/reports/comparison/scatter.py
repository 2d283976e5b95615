"""Scatter plots of accuracy over variety and over cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from recsys.evaluation.significance import Mean
from recsys.reports.comparison.differences import PART
from recsys.reports.comparison.measured import MeasuredRun
from recsys.reports.comparison.run_plots import percent
from recsys.reports.comparison.styles import RunStyle
from recsys.reports.presentation.labels import Label, label_points
from recsys.reports.presentation.picture import Picture, canvas, headline


def against(
    runs: Sequence[MeasuredRun], style: Mapping[str, RunStyle], *, found: Mapping[str, Mean], other: str
) -> Picture:
    """Draw accuracy over `coverage@10` or `popularity@10`.

    Args:
        runs: runs to draw; runs without `other` are left out.
        style: style of each run, by name.
        found: metric of each run with its interval, for the vertical axis.
        other: metric for the horizontal axis.
    """
    metric = next(iter(found.values())).metric
    drawn = [run for run in runs if PART + other in run.metrics]
    values = [run.metrics[PART + other] for run in drawn]
    is_coverage = other.startswith("coverage")
    most = max(drawn, key=lambda run: found[run.name].mean).name
    end = (max if is_coverage else min)(values)
    widest = [run.name for run, value in zip(drawn, values, strict=True) if value == end]
    what = "shows most of the corpus" if is_coverage else "shows the least popular items"
    wins = f"{most} has the highest {metric}{' and' if widest == [most] else f', {widest[0]}'} {what}"
    if len(widest) > 1:
        wins = f"{most} has the highest {metric}; {' and '.join(widest[:3])} have the same {other}"
    corner = "up and to the right is better" if is_coverage else "up is more accurate, left is less popular"
    with canvas(3.6) as axis:
        if is_coverage:
            axis.set_xlabel(f"{other}: share of the corpus that is shown to anyone")
            axis.xaxis.set_major_formatter(percent)
            axis.margins(x=0.15)
        else:
            axis.set_xlabel(f"{other} (1: that of the average trained item; log scale)")
            _logarithmic(axis, values)
        headline(axis, wins, caption=f"test {metric} with 95% interval; {corner}")
        _points(axis, drawn, places=values, style=style, found=found)
    details = "; ".join(
        f"{run.name}: {metric} {found[run.name].mean:.4f}, {other} {value:.4f}"
        for run, value in zip(drawn, values, strict=True)
    )
    return Picture.of(axis, f"Scatter of test {metric} over {other}. {wins}. {details}.")


def cost(runs: Sequence[MeasuredRun], style: Mapping[str, RunStyle], *, found: Mapping[str, Mean]) -> Picture:
    """Draw accuracy over seconds.

    Args:
        runs: runs to draw; runs without a recorded duration are left out.
        style: style of each run, by name.
        found: metric of each run with its interval, for the vertical axis.
    """
    metric = next(iter(found.values())).metric
    drawn = [run for run in runs if run.state.seconds]
    seconds = [run.state.seconds for run in drawn]
    most = max(drawn, key=lambda run: found[run.name].mean).name
    fastest = drawn[seconds.index(min(seconds))].name
    wins = f"{most} has the highest {metric}{' and' if most == fastest else f', {fastest}'} took the least time"
    with canvas(3.6) as axis:
        axis.set_xlabel("seconds, evaluation included (log scale)")
        _logarithmic(axis, seconds)
        headline(axis, wins, caption=f"test {metric} with 95% interval; up and to the left is better")
        _points(axis, drawn, places=seconds, style=style, found=found)
    details = "; ".join(
        f"{run.name}: {metric} {found[run.name].mean:.4f} in {value:,.0f} seconds"
        for run, value in zip(drawn, seconds, strict=True)
    )
    return Picture.of(axis, f"Scatter of test {metric} over seconds. {wins}. {details}.")


def _points(
    axis: Axes,
    runs: Sequence[MeasuredRun],
    *,
    places: Sequence[float],
    style: Mapping[str, RunStyle],
    found: Mapping[str, Mean],
) -> None:
    labels = []
    # Runs with names are drawn last, on top of the others.
    for run, x in sorted(zip(runs, places, strict=True), key=lambda pair: style[pair[0].name].is_named):
        look, mean = style[run.name], found[run.name]
        axis.plot(x, mean.mean, look.mark, color=look.colour, markersize=9)
        if look.is_named:
            axis.plot([x, x], [mean.low, mean.high], color=look.colour, linewidth=1.2, alpha=0.7)
            labels.append(Label(run.name, x, mean.mean, look.colour, mean.low, mean.high))
    axis.margins(y=0.2)
    axis.grid(axis="x")
    label_points(axis, labels)


def _logarithmic(axis: Axes, values: Sequence[float]) -> None:
    low, high = min(values) / 1.3, max(values) * 1.3
    steps = [base * 10.0**power for power in range(-3, 7) for base in (1, 2, 5)]
    inside = [step for step in steps if low <= step <= high]
    axis.set(xscale="log", xlim=(low, high))
    axis.set_xticks(inside, [f"{step:,g}" for step in inside])
    axis.xaxis.set_minor_locator(NullLocator())
