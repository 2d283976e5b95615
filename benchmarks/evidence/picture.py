"""One picture for all data sets: the model, the best tuned baseline and the best published figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from evidence.measured import Table

matplotlib.use("svg")
from matplotlib import pyplot

# The names of shapes are random otherwise, and the file would differ each time.
matplotlib.rcParams["svg.hashsalt"] = "evidence"

# Colours that differ in brightness too, and a marker of its own for each kind.
KINDS = {
    "model": ("#0b62a4", "o"),
    "best tuned baseline": ("#b35900", "s"),
    "best published": ("#555555", "D"),
}


class Point(NamedTuple):
    kind: str
    title: str
    value: float
    low: float
    high: float


def points(table: Table, metric: str) -> list[Point]:
    """Return the first and the last variant that are measured, the best baseline, and the best published figure."""
    models = [name for name in table.models if metric in table.rows[name].figures]
    baseline = table.best_baseline(metric)
    chosen = [("model", name) for name in (models[:1] + models[1:][-1:])]
    found = []
    for kind, name in (*chosen, *([("best tuned baseline", baseline)] if baseline else [])):
        figure = table.rows[name].figures[metric]
        low, high = (figure.mean if end is None else end for end in (figure.low, figure.high))
        found.append(Point(kind, table.plan.title(name), figure.mean, low, high))
    papers = [paper for paper in table.data.published if metric in paper.metrics]
    if papers:
        best = max(papers, key=lambda paper: paper.metrics[metric])
        value = best.metrics[metric]
        found.append(Point("best published", best.model, value, value, value))
    return found


def draw(tables: Sequence[Table], metric: str, path: Path) -> None:
    """Draw a panel for each data set. Lines are 95% intervals over users."""
    if not tables:
        return
    panels = [points(table, metric) for table in tables]
    heights = [max(len(found), 1) for found in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(8, 0.5 * len(panels) + 0.28 * sum(heights)), layout="constrained", squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    for axis, table, found in zip(axes[:, 0], tables, panels, strict=True):
        for place, point in enumerate(found):
            colour, marker = KINDS[point.kind]
            axis.plot([point.low, point.high], [place, place], color=colour, linewidth=2)
            axis.plot(point.value, place, marker, color=colour, markersize=7)
            figure_text = f"{point.value:.4f}".removeprefix("0")
            axis.annotate(figure_text, (point.high, place), (6, 0), textcoords="offset points", va="center", fontsize=9)
        axis.set_yticks(range(len(found)), [f"{point.kind}: {point.title}" for point in found], fontsize=9)
        axis.set_ylim(len(found) - 0.5, -0.5)
        axis.set_xlim(0, 1.25 * max((point.high for point in found), default=1.0))
        axis.set_title(table.data.title, fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="x", labelsize=8)
    axes[-1, 0].set_xlabel(metric.partition("/")[2], fontsize=9)
    figure.savefig(path, metadata={"Date": None, "Title": f"{metric} of models, baselines and published figures"})
    pyplot.close(figure)
