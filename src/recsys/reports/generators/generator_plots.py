"""Pictures of the generator report. Models are blue and heuristics grey in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from recsys.reports.generators.blending import Budgets
from recsys.reports.generators.figures import Estimate
from recsys.reports.generators.narrative import interval, percent, relative
from recsys.reports.presentation.colours import BETTER, UNCLEAR, WORSE
from recsys.reports.presentation.picture import GRID, INK, QUIET, Picture, canvas, headline

LEARNED, HEURISTIC, BLEND, LIMIT = "#0072B2", "#8A8A8A", "#00805E", "#D8D8D8"
_SHADES = LinearSegmentedColormap.from_list("shades", ["#FFFFFF", "#0072B2"])
# Cells above this share of the scale get white letters.
_DARK = 0.55


def bars(values: Mapping[str, Estimate], colours: Sequence[str], *, finding: str, caption: str, label: str) -> Picture:
    """Draw each figure as a bar with its interval, in the given order."""
    with canvas(height=1.25 + 0.33 * len(values)) as axis:
        for place, (value, colour) in enumerate(zip(values.values(), colours, strict=True)):
            axis.barh(place, value.value, 0.68, color=colour)
            axis.plot([value.low, value.high], [place, place], color=INK, linewidth=1.3)
            _write(axis, percent(value.value), x=max(value.high, value.value), place=place)
        _rows(axis, [*values])
        axis.set_xlim(0, 1.14 * max(max(value.high for value in values.values()), 1e-6))
        axis.xaxis.set_major_formatter(_percent)
        axis.set_xlabel(label)
        headline(axis, finding, caption=caption)
    details = "; ".join(f"{name} {percent(value.value)} ({interval(value)})" for name, value in values.items())
    return Picture.of(axis, f"Bars with 95% intervals: {label}. {finding}. {details}.")


def changes(values: Mapping[str, Estimate], base: Estimate, *, finding: str, caption: str, label: str) -> Picture:
    """Draw changes of recall as points with intervals, in shares of the recall `base`."""
    with canvas(height=1.35 + 0.33 * len(values)) as axis:
        spoken = []
        for place, (name, value) in enumerate(values.items()):
            change = relative(value, base)
            colour = BETTER if change.low > 0 else WORSE if change.high < 0 else UNCLEAR
            axis.plot([change.low, change.high], [place, place], color=colour, linewidth=3, solid_capstyle="butt")
            axis.plot(change.value, place, "o", color=colour, markersize=8)
            axis.annotate(
                percent(change.value, True), (1, place), (6, 0), ("axes fraction", "data"), "offset points",
                va="center", color=colour, annotation_clip=False,
            )  # fmt: skip
            spoken.append(f"{name} {percent(change.value, True)} ({interval(change, True)})")
        axis.axvline(0, color=INK, linewidth=1)
        _rows(axis, [*values])
        axis.margins(x=0.08)
        axis.xaxis.set_major_formatter(_percent)
        axis.set_xlabel(label)
        headline(axis, finding, caption=caption)
    return Picture.of(axis, f"Changes with 95% intervals: {label}. {finding}. {'; '.join(spoken)}.")


def matrix(
    values: npt.NDArray[np.float64], rows: Sequence[str], *, columns: Sequence[str], finding: str, caption: str
) -> Picture:
    """Draw shares as a matrix of shades; nan leaves a cell empty. Names of columns may have two lines."""
    top, is_tall = float(np.nanmax(values, initial=1e-9)), any("\n" in column for column in columns)
    with canvas(height=2.0 + 0.36 * len(rows)) as axis:
        axis.imshow(np.nan_to_num(values) / top, cmap=_SHADES, vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "#FFFFFF" if value / top > _DARK else INK
                axis.text(column, row, percent(value), ha="center", va="center", size=8.5, color=colour)
        axis.set_xticks(range(len(columns)), columns)
        if not is_tall:
            for label in axis.get_xticklabels():
                label.set(rotation=40, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(rows)), rows)
        axis.tick_params(length=0, labelcolor=INK, labelsize=9)
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
        headline(axis, finding, caption=caption)
    details = "; ".join(
        f"{rows[row]}, {columns[column]} {percent(value)}".replace("\n", " ")
        for (row, column), value in np.ndenumerate(values)
        if np.isfinite(value)
    )
    return Picture.of(axis, f"Matrix: {caption}. {finding}. {details}.")


def budgets(
    names: Sequence[str], blends: Mapping[str, Budgets], *, learned: Sequence[bool], finding: str, caption: str
) -> Picture:
    """Draw the budgets of two blends: the first pale, the second strong."""
    (pale, first), (strong, second) = blends.items()
    used = sorted((g for g in range(len(names)) if first[g] or second[g]), key=lambda g: -first[g])
    with canvas(height=1.3 + 0.33 * len(used)) as axis:
        for place, g in enumerate(used):
            for offset, budget, alpha in ((-0.19, first[g], 0.45), (0.19, second[g], 1.0)):
                axis.barh(place + offset, budget, 0.34, color=LEARNED if learned[g] else HEURISTIC, alpha=alpha)
                _write(axis, str(budget), x=budget, place=place + offset)
        _rows(axis, [names[g] for g in used])
        axis.set_xlim(0, 1.12 * max(*first, *second))
        axis.set_xlabel(f"candidates of {sum(first)}; pale: {pale}, strong: {strong}")
        headline(axis, finding, caption=caption)
    details = "; ".join(f"{blend}: " + ", ".join(f"{names[g]} {b[g]}" for g in used) for blend, b in blends.items())
    return Picture.of(axis, f"Bars of budgets. {finding}. {details}.")


def _rows(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.grid(axis="x", color=GRID)
    axis.spines["left"].set_visible(False)


def _write(axis: Axes, text: str, *, x: float, place: float) -> None:
    axis.annotate(text, (x, place), (4, 0), "data", "offset points", va="center", size=9, color=QUIET)


def _percent(value: float, _: float) -> str:
    return f"{round(100 * value, 6):g}%".replace("-", "−")
