"""Pictures of a verdict: values beside their limits, and events by day."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recsys.operations.gates.verdict import Outcome, Verdict
from recsys.reports.presentation.colours import BASELINE, BETTER, OTHERS, WORSE
from recsys.reports.presentation.picture import INK, Picture, canvas, headline

_MAX_ROWS = 12
# Longer bars are cut off.
_MAX_RATIO = 3.0
_WARN = "#8A6500"


def bounds_picture(outcomes: Sequence[Outcome]) -> Picture | None:
    """Draw values as shares of their limits: all that failed or warned, then those nearest to their limit."""
    drawn = [(row, ratio) for row in outcomes if (ratio := _ratio(row)) is not None]
    drawn.sort(key=lambda pair: (pair[0].status not in ("fail", "warn"), abs(np.log(max(pair[1], 1e-3)))))
    drawn = drawn[:_MAX_ROWS]
    if not drawn:
        return None
    colours = {"fail": WORSE, "warn": _WARN}
    with canvas(height=1.4 + 0.34 * len(drawn)) as axis:
        for place, (row, ratio) in enumerate(drawn):
            colour = colours.get(row.status, BETTER)
            axis.barh(place, min(ratio, _MAX_RATIO), height=0.62, color=colour)
            text = row.measured.replace("expected ", "") + (" (cut off)" if ratio > _MAX_RATIO else "")
            axis.annotate(
                text, (1, place), (6, 0), ("axes fraction", "data"), "offset points", va="center", color=colour
            )
        axis.axvline(1, color=INK, linewidth=1.5)
        axis.set_yticks(range(len(drawn)), [f"{row.gate}: {row.check}" for row, _ in drawn])
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.set_ylim(len(drawn) - 0.5, -0.5)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("value relative to its limit")
        num_wrong = sum(row.status in colours for row in outcomes)
        finding = "One check misses its limit" if num_wrong == 1 else f"{num_wrong or 'No'} checks miss their limit"
        headline(axis, finding, caption="line: the limit; orange: failed, brown: warned, blue: the nearest that passed")
    return Picture.of(axis, f"{finding}. " + "; ".join(f"{row.gate}, {row.check}: {row.measured}" for row, _ in drawn))


def _ratio(row: Outcome) -> float | None:
    if row.status == "untested" or row.value is None or row.threshold is None:
        return None
    if row.threshold > 0 and row.value >= 0:
        return row.value / row.threshold
    # A limit of zero has no scale. Only a value beyond it is worth a bar.
    return _MAX_RATIO + 1 if row.status in ("fail", "warn") and row.bound == "most" else None


def days_picture(verdict: Verdict) -> Picture:
    """Draw the events of each day: before the window, new, and those days that a check names."""
    dates, counts = [*verdict.days], np.array([*verdict.days.values()])
    wrong = {day for row in (*verdict.failed, *verdict.warnings) for day in row.fits.get("known_days", ())}
    is_new = np.array([verdict.new_from is not None and date >= verdict.new_from for date in dates])
    colours = [WORSE if date in wrong else BETTER if new else OTHERS for date, new in zip(dates, is_new, strict=True)]
    usual = float(np.median(counts[~is_new] if (~is_new).any() else counts))
    with canvas(height=3.4) as axis:
        axis.bar(range(len(dates)), counts, color=colours, width=0.85)
        axis.axhline(usual, color=BASELINE, linewidth=1, linestyle="--")
        step = max(1, len(dates) // 6)
        axis.set_xticks(range(0, len(dates), step), dates[::step], rotation=30, ha="right")
        axis.grid(axis="x", visible=False)
        axis.set_ylabel("events")
        named = sorted(wrong & {*dates})
        finding = (
            f"{', '.join(named[:3])} {'differs' if len(named) == 1 else 'differ'} from the days before"
            if named
            else "Events by day"
        )
        caption = "grey: before, blue: new, orange: new and named by a check; dashed: median of the days before"
        headline(axis, finding, caption=caption)
    listed = ", ".join(f"{date}: {count:,}" for date, count in [*verdict.days.items()][-14:])
    return Picture.of(axis, f"{finding}. Usual {usual:,.0f} events a day. Last days: {listed}.")
