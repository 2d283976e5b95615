"""A figure with a text alternative, for notebooks and HTML pages."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK, QUIET, GRID = "#222222", "#5F5F5F", "#E4E4E4"
# Inches. At this width letters are readable on a phone.
WIDTH = 5.6

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "lines.linewidth": 2.0,
    # Names of runs may contain a dollar sign.
    "text.parse_math": False,
    # Letters are drawn as shapes, so no font is needed. The salt makes ids reproducible.
    "svg.fonttype": "path",
    "svg.hashsalt": "recsys",
}


@dataclass(frozen=True)
class Picture:
    """A drawn figure.

    Attributes:
        figure: matplotlib figure, which callers may change.
        alt: description of the figure in words and numbers.
    """

    figure: Figure
    alt: str

    @classmethod
    def of(cls, axis: Axes, alt: str) -> Picture:
        """Return the picture of an axis's figure, with its layout fixed, so that drawing it again moves nothing."""
        figure = figure_of(axis)
        with matplotlib.rc_context(_STYLE):
            for _ in range(3):
                figure.draw_without_rendering()
        figure.set_layout_engine("none")
        return cls(figure, alt)

    @property
    def finding(self) -> str:
        """Conclusion that `headline` wrote above the drawing; empty without one."""
        return str(self.figure.get_label())

    def svg(self) -> str:
        """Return the drawing as SVG without external references."""
        content = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with matplotlib.rc_context(_STYLE):
            self.figure.savefig(content, format="svg", metadata=nothing)
        text = content.getvalue()
        return text[text.index("<svg") :]

    def html(self) -> str:
        """Return an `<img>` element that contains the drawing."""
        drawing = base64.b64encode(self.svg().encode()).decode()
        return (
            f'<img src="data:image/svg+xml;base64,{drawing}" alt="{escape(self.alt, quote=True)}" '
            'style="max-width:100%;height:auto">'
        )

    def save(self, path: Path) -> None:
        """Write a file in the format of its suffix (.png, .svg, .pdf)."""
        with matplotlib.rc_context(_STYLE):
            self.figure.savefig(path, dpi=200)

    def _repr_html_(self) -> str:
        return self.html()


@contextmanager
def canvas(height: float = 3.6) -> Iterator[Axes]:
    """Yield the axes of a new figure in the style of all pictures; `height` is in inches."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure.add_subplot()


def headline(axis: Axes, finding: str, *, caption: str) -> None:
    """Write the finding in bold and its explanation beneath it, from the figure's left edge, in lines that fit.

    Args:
        axis: axes of the figure.
        finding: conclusion for the reader.
        caption: explanation of the axes and marks.
    """
    figure = figure_of(axis)
    figure.set_label(finding)
    width, height = (float(size) * 72 for size in figure.get_size_inches())
    lines = textwrap.wrap(finding, int(width / 6.9))
    beneath = textwrap.wrap(caption, int(width / 5.9))
    top = 6.0
    for text, size, weight, colour in (
        *((line, 11, "bold", INK) for line in lines),
        *((line, 9.5, "normal", QUIET) for line in beneath),
    ):
        figure.text(
            6 / width, 1 - top / height, text, size=size, weight=weight, color=colour, va="top", in_layout=False
        )
        top += size * 1.35
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0, 0, 1, 1 - (top + 5) / height))


def figure_of(axis: Axes) -> Figure:
    """Return the figure that an axis belongs to."""
    figure = axis.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure
