"""Names that do not lie on each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from recsys.reports.presentation.labels import LINE, Label, label_ends, label_points, spread
from recsys.reports.presentation.picture import canvas, figure_of


def test_spread_by_hand() -> None:
    # 0 and 1 want the same place nearly: 2 apart around their mean .5. 10 is far from both.
    assert spread(np.array([0.0, 1.0, 10.0]), 2.0) == pytest.approx([-0.5, 1.5, 10])
    # In any order; the third joins the block of the first two, whose mean is 1.
    assert spread(np.array([2.0, 0.0, 1.0]), 2.0) == pytest.approx([3, -1, 1])
    assert spread(np.array([5.0]), 2.0) == pytest.approx([5])


def test_ends_of_lines_are_told_apart() -> None:
    with canvas() as axis:
        values = [0.30, 0.301, 0.302, 0.1]
        for value in values:
            axis.plot([0, 1], [0, value])
        label_ends(axis, [Label(f"run {number}", 1, value, "black") for number, value in enumerate(values)])
        label_ends(axis, [])
    figure = figure_of(axis)
    figure.draw_without_rendering()
    assert not any(text.get_parse_math() for text in axis.texts)
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == 4
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    # In the order of the lines, one line of text apart, and within the figure.
    middles = [(box.y0 + box.y1) / 2 for box in boxes]
    assert np.argsort(middles).tolist() == [3, 0, 1, 2]
    assert np.diff(sorted(middles))[1:] == pytest.approx(LINE * figure.dpi / 72, abs=1.5)
    assert all(box.x0 > axis.transData.transform((1, 0))[0] and box.x1 <= figure.bbox.x1 for box in boxes)


def test_names_of_points_cover_no_point_and_no_name() -> None:
    points = [(0.5, 0.5), (0.51, 0.5), (0.52, 0.51), (0.1, 0.9), (1.0, 0.5)]
    with canvas() as axis:
        axis.plot(*zip(*points, strict=True), "o")
        axis.set(xlim=(0, 1), ylim=(0, 1))
        label_points(axis, [Label(f"a long name {number}", x, y, "black") for number, (x, y) in enumerate(points)])
    figure = figure_of(axis)
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == 5
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    for x, y in axis.transData.transform(points):
        assert not any(box.contains(x, y) for box in boxes)
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)
