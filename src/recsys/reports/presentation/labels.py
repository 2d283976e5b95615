"""Placement of labels next to points and lines, without overlaps, instead of a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox
from scipy.optimize import isotonic_regression

from recsys.reports.presentation.picture import figure_of

# Height of a line of text in points.
LINE = 12.0


@dataclass(frozen=True)
class Label:
    """A name at a point of the data, and the ends of the point's interval if the picture shows one."""

    text: str
    x: float
    y: float
    colour: str
    low: float | None = None
    high: float | None = None


def spread(wanted: npt.NDArray[np.float64], gap: float) -> npt.NDArray[np.float64]:
    """Return the positions nearest to `wanted` that are at least `gap` apart, in the same order.

    With y_i = p_i - i gap this is isotonic regression: neighbours that collide share a block around their mean.
    """
    order = np.argsort(wanted, kind="stable")
    steps = np.arange(len(wanted)) * gap
    positions = np.empty(len(wanted))
    positions[order] = isotonic_regression(wanted[order] - steps).x + steps
    return positions


def label_ends(axis: Axes, labels: Sequence[Label]) -> None:
    """Write names to the right of the ends of lines, moved up or down where they would collide."""
    if not labels:
        return
    figure = figure_of(axis)
    figure.draw_without_rendering()
    points = axis.transData.transform([(label.x, label.y) for label in labels]) * 72 / figure.dpi
    placed = spread(points[:, 1], LINE)
    right = points[:, 0].max() + 8
    for label, (x, y), height in zip(labels, points, placed, strict=True):
        axis.annotate(
            label.text,
            (label.x, label.y),
            xytext=(right - x, height - y),
            textcoords="offset points",
            va="center",
            color=label.colour,
            annotation_clip=False,
        )


def label_points(axis: Axes, labels: Sequence[Label]) -> None:
    """Write names next to points, each at the first position where it covers no other name, point or interval."""
    figure = figure_of(axis)
    figure.draw_without_rendering()
    points = axis.transData.transform([(label.x, label.y) for label in labels]).reshape(-1, 2)
    unit = figure.dpi / 72
    reach = 4 * unit
    taken = [Bbox.from_bounds(x - reach, y - reach, 2 * reach, 2 * reach) for x, y in points]
    for label, box in zip(labels, taken, strict=True):
        for end in (label.low, label.high):
            if end is not None:
                at = axis.transData.transform((label.x, end))[1]
                box.y0, box.y1 = min(box.y0, at), max(box.y1, at)
    inside = axis.get_window_extent()
    for label, own, (_, middle) in zip(labels, list(taken), points, strict=True):
        up, down = (own.y1 - middle) / unit, (own.y0 - middle) / unit
        places = [(8.0, 0.0, "left"), (-8.0, 0.0, "right")]
        # Try above and below the interval first, then further away.
        for step in range(4):
            for height in (up + 9 + LINE * step, down - 9 - LINE * step):
                places += [(0.0, height, "center"), (-4.0, height, "left"), (4.0, height, "right")]
        for x, y, side in places:
            text = axis.annotate(
                label.text,
                (label.x, label.y),
                xytext=(x, y),
                textcoords="offset points",
                va="center",
                ha=side,
                color=label.colour,
            )
            box = text.get_window_extent()
            others = [other for other in taken if other is not own]
            if inside.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and not box.count_overlaps(others):
                break
            if (x, y, side) != places[-1]:
                text.remove()
        taken.append(box)
