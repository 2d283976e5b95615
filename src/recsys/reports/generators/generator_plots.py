"""Pictures of the generator report. Models are blue and heuristics grey in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from recsys.reports.generators.blending import BlendPlan, Budgets
from recsys.reports.generators.figures import Estimate, Figures
from recsys.reports.generators.narrative import interval, percent, relative
from recsys.reports.presentation.colours import BETTER, UNCLEAR, WORSE
from recsys.reports.presentation.picture import GRID, INK, QUIET, Picture, canvas, headline

LEARNED, HEURISTIC = "#0072B2", "#8A8A8A"
_SHADES = LinearSegmentedColormap.from_list("shades", ["#FFFFFF", "#0072B2"])
# Cells above this share of the scale get white letters.
_DARK = 0.55


def bars(
    names: Sequence[str], values: Sequence[Estimate], *, learned: Sequence[bool], finding: str, caption: str, label: str
) -> Picture:
    """Draw a figure of each generator as a bar with its interval, the largest first."""
    order = sorted(range(len(names)), key=lambda number: -values[number].value)
    with canvas(height=1.25 + 0.33 * len(names)) as axis:
        for place, number in enumerate(order):
            value, colour = values[number], LEARNED if learned[number] else HEURISTIC
            axis.barh(place, value.value, 0.68, color=colour)
            axis.plot([value.low, value.high], [place, place], color=INK, linewidth=1.3)
            _write(axis, percent(value.value), x=max(value.high, value.value), place=place)
        _rows(axis, [names[number] for number in order])
        axis.set_xlim(0, 1.14 * max(max(value.high for value in values), 1e-6))
        axis.xaxis.set_major_formatter(_percent)
        axis.set_xlabel(label)
        headline(axis, finding, caption=caption)
    details = "; ".join(f"{names[n]} {percent(values[n].value)} ({interval(values[n])})" for n in order)
    return Picture.of(axis, f"Bars with 95% intervals: {label}. {finding}. {details}.")


def changes(
    names: Sequence[str], values: Sequence[Estimate], *, base: Estimate, finding: str, caption: str, label: str
) -> Picture:
    """Draw the recall that each generator adds or that its retirement costs, in shares of the best blend's recall.

    Args:
        names: names of the generators.
        values: changes of recall.
        base: recall of the best blend.
        finding: conclusion for the reader.
        caption: explanation of the picture.
        label: label of the axis.
    """
    with canvas(height=1.35 + 0.33 * len(names)) as axis:
        spoken = []
        for place, (name, value) in enumerate(zip(names, values, strict=True)):
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
        _rows(axis, names)
        axis.margins(x=0.08)
        axis.xaxis.set_major_formatter(_percent)
        axis.set_xlabel(label)
        headline(axis, finding, caption=caption)
    return Picture.of(axis, f"Changes with 95% intervals: {label}. {finding}. {'; '.join(spoken)}.")


def overlap(names: Sequence[str], shared: Mapping[tuple[int, int], Estimate], *, finding: str, caption: str) -> Picture:
    """Draw the overlap of every two generators as a matrix of shades."""
    size = len(names)
    values = np.full((size, size), np.nan)
    for (g, h), estimate in shared.items():
        values[g, h] = values[h, g] = estimate.value
    with canvas(height=1.9 + 0.36 * size) as axis:
        _matrix(axis, values, rows=names, columns=names)
        headline(axis, finding, caption=caption)
    details = "; ".join(f"{names[g]} and {names[h]} {percent(e.value)}" for (g, h), e in shared.items())
    return Picture.of(axis, f"Matrix of shared items. {finding}. {details}.")


def segments(figures: Figures, finding: str, *, caption: str) -> Picture:
    """Draw the recall of generators (rows) in groups of users (columns)."""
    groups = list(figures.segments)
    values = np.array(
        [[figures.segments[group].recall[g].value for group in groups] for g in range(len(figures.names))]
    )
    with canvas(height=2.1 + 0.36 * len(figures.names)) as axis:
        _matrix(
            axis,
            values,
            rows=figures.names,
            columns=[group.replace(": ", ":\n").replace("back ", "back\n") for group in groups],
        )
        headline(axis, finding, caption=caption)
    details = "; ".join(
        f"{group}: "
        + ", ".join(
            f"{n} {percent(r.value)}" for n, r in zip(figures.names, figures.segments[group].recall, strict=True)
        )
        for group in groups
    )
    return Picture.of(axis, f"Matrix of recall by generator and group of users. {finding}. {details}.")


def budgets(
    figures: Figures, plan: BlendPlan, *, kept: Budgets, learned: Sequence[bool], finding: str, caption: str
) -> Picture:
    """Draw the budgets of the best blend of all generators, and of the kept ones."""
    shown = [("all", plan.everyone), ("kept", kept)]
    used = [g for g in range(len(figures.names)) if any(blend[g] for _, blend in shown)]
    used.sort(key=lambda g: -plan.everyone[g])
    with canvas(height=1.3 + 0.33 * len(used)) as axis:
        for place, g in enumerate(used):
            colour = LEARNED if learned[g] else HEURISTIC
            for offset, (_, blend), alpha in ((-0.19, shown[0], 0.45), (0.19, shown[1], 1.0)):
                axis.barh(place + offset, blend[g], 0.34, color=colour, alpha=alpha)
                _write(axis, str(blend[g]), x=blend[g], place=place + offset)
        _rows(axis, [figures.names[g] for g in used])
        axis.set_xlim(0, 1.12 * max(max(blend) for _, blend in shown))
        axis.set_xlabel(f"candidates of {figures.k}; pale: all generators, strong: kept")
        headline(axis, finding, caption=caption)
    details = "; ".join(
        f"{name}: " + ", ".join(f"{figures.names[g]} {blend[g]}" for g in used) for name, blend in shown
    )
    return Picture.of(axis, f"Bars of budgets. {finding}. {details}.")


def blends(figures: Figures, kept: Estimate, *, finding: str, caption: str) -> Picture:
    """Draw the recall of blends beside that of the best single generator."""
    best = max(range(len(figures.names)), key=lambda number: figures.alone[number].recall.value)
    shown = {
        f"{figures.names[best]} alone": figures.alone[best].recall,
        "all, equal turns": figures.equal,
        "kept generators, best budgets": kept,
        "all, best budgets": figures.everyone,
        "whole lists, no budget": figures.union,
    }
    with canvas(height=1.25 + 0.36 * len(shown)) as axis:
        for place, value in enumerate(shown.values()):
            is_limit = value is figures.union
            axis.barh(place, value.value, 0.68, color="#D8D8D8" if is_limit else "#00805E")
            axis.plot([value.low, value.high], [place, place], color=INK, linewidth=1.3)
            _write(axis, percent(value.value), x=value.high, place=place)
        _rows(axis, list(shown))
        axis.set_xlim(0, 1.14 * figures.union.high)
        axis.xaxis.set_major_formatter(_percent)
        axis.set_xlabel("recall")
        headline(axis, finding, caption=caption)
    details = "; ".join(f"{name} {percent(value.value)} ({interval(value)})" for name, value in shown.items())
    return Picture.of(axis, f"Bars of recall with 95% intervals. {finding}. {details}.")


def _matrix(axis: Axes, values: npt.NDArray[np.float64], *, rows: Sequence[str], columns: Sequence[str]) -> None:
    top = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
    axis.imshow(np.nan_to_num(values) / max(top, 1e-9), cmap=_SHADES, vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "#FFFFFF" if value / max(top, 1e-9) > _DARK else INK
            axis.text(column, row, percent(value), ha="center", va="center", size=8.5, color=colour)
    axis.set_xticks(range(len(columns)), columns, rotation=0 if any("\n" in c for c in columns) else 40)
    if not any("\n" in column for column in columns):
        for label in axis.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(length=0, labelcolor=INK, labelsize=9)
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set_visible(False)


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
