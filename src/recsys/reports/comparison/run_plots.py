"""Pictures of a comparison: accuracy, slices and differences."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from recsys.evaluation.significance import Mean, means
from recsys.reports.comparison import narrative as words
from recsys.reports.comparison.differences import PART, Difference
from recsys.reports.comparison.measured import MeasuredRun
from recsys.reports.comparison.styles import RunStyle
from recsys.reports.presentation.colours import BETTER, UNCLEAR, WORSE
from recsys.reports.presentation.labels import Label, label_ends
from recsys.reports.presentation.picture import GRID, INK, QUIET, Picture, canvas, headline


def recall_curves(runs: Sequence[MeasuredRun], style: Mapping[str, RunStyle], *, baseline: str) -> Picture:
    """Draw recall over the number of items shown. `style` is the style of each run, by name."""
    found = {run.name: _recall(run) for run in runs}
    cutoffs = sorted(set.intersection(*({*recall} for recall in found.values())))
    with canvas() as axis:
        labels = []
        for run in _in_front_last(runs, style):
            look, values = style[run.name], [found[run.name][cutoff] for cutoff in cutoffs]
            axis.plot(cutoffs, values, look.dashes, color=look.colour, marker=look.mark, markersize=5, clip_on=False)
            if look.is_named:
                labels.append(Label(run.name, cutoffs[-1], values[-1], look.colour))
        axis.set(xscale="log", xlabel="K, items shown (log scale)", ylim=(0, None))
        axis.set_xticks(cutoffs, [str(cutoff) for cutoff in cutoffs])
        axis.xaxis.set_minor_locator(NullLocator())
        best = {max(found, key=lambda name: found[name][cutoff]) for cutoff in cutoffs}
        wins = f"{best.pop()} finds most, whatever is shown" if len(best) == 1 else "Which run finds most depends on K"
        headline(axis, wins, caption=f"share of a user's test items among the K shown; dashed: the baseline {baseline}")
        label_ends(axis, labels)
    details = "; ".join(
        f"{name}: " + ", ".join(f"{recall[c]:.4f} at {c}" for c in cutoffs) for name, recall in found.items()
    )
    return Picture.of(axis, f"Line chart of test recall at K for {len(runs)} runs. {wins}. {details}.")


def forest(found: Sequence[Difference]) -> Picture:
    """Draw differences with their intervals; a run is better to the right of zero."""
    is_relative = all(difference.relative is not None for difference in found)
    rows = []
    for difference in found:
        pair = difference.paired
        spot = difference.relative if is_relative else (pair.difference, pair.low, pair.high)
        assert spot is not None
        rows.append((difference, spot))
    metrics = list(dict.fromkeys(difference.paired.metric for difference in found))
    baselines = {difference.baseline for difference in found}
    with canvas(height=1.5 + 0.30 * (len(rows) + len(metrics))) as axis:
        place, ticks = 0.0, []
        colours = {"better": BETTER, "worse": WORSE, "unclear": UNCLEAR}
        for metric in metrics:
            axis.annotate(
                words.title_of(metric), (0, place), (-4, 0), ("axes fraction", "data"), "offset points",
                ha="right", va="center", weight="bold",
            )  # fmt: skip
            place += 1
            for difference, (middle, low, high) in rows:
                if difference.paired.metric != metric:
                    continue
                colour = colours[difference.verdict]
                axis.plot([low, high], [place, place], color=colour, linewidth=2.5, solid_capstyle="butt")
                axis.plot(middle, place, "o", color=colour, markersize=7)
                value = f"{middle:+.1%}" if is_relative else f"{middle:+.4f}"
                axis.annotate(
                    f"{value}   p {words.p_equals(difference.p_value)}", (1, place), (6, 0), ("axes fraction", "data"),
                    "offset points", va="center", color=colour, annotation_clip=False,
                )  # fmt: skip
                name = difference.run if len(baselines) == 1 else f"{difference.run} − {difference.baseline}"
                ticks.append((place, name))
                place += 1
        axis.axvline(0, color=INK, linewidth=1)
        axis.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.set_ylim(place - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
        axis.grid(axis="x", color=GRID)
        axis.spines["left"].set_visible(False)
        if is_relative:
            axis.xaxis.set_major_formatter(percent)
        axis.margins(x=0.08)
        only = next(iter(baselines)) if len(baselines) == 1 else "the second"
        axis.set_xlabel(f"gain over {only}, 95% interval" + (", relative" if is_relative else ""))
        sure = [difference for difference, _ in rows if difference.verdict != "unclear"]
        wins = f"{len(sure)} of {len(rows)} differences shown are more than chance"
        headline(
            axis, wins, caption="blue: better, orange: worse (p < 0.05, corrected by Holm), grey: no difference shown"
        )
    details = "; ".join(
        f"{d.run} against {d.baseline} in {d.paired.metric}: {words.gain(d)}, interval {words.interval(d)}, "
        f"p {words.p_equals(d.p_value)}"
        for d in found
    )
    return Picture.of(axis, f"Differences with 95% intervals. {wins}. {details}.")


def slices(runs: Sequence[MeasuredRun], style: Mapping[str, RunStyle], *, names: Sequence[str]) -> Picture:
    """Draw recall in slices of items and users as bars with intervals, for the runs with names.

    Args:
        runs: runs of the same test.
        style: style of each run, by name.
        names: columns such as `tail/recall@10`.
    """
    drawn = [run for run in runs if style[run.name].is_named]
    found = {run.name: {mean.metric: mean for mean in means(run.per_user, names)} for run in drawn}
    kept = [name for name in names if all(name in values for values in found.values())]
    height = 0.84 / len(drawn)
    with canvas(height=1.2 + len(kept) * (0.2 + 0.18 * len(drawn))) as axis:
        for number, run in enumerate(drawn):
            values = [found[run.name][name] for name in kept]
            places = np.arange(len(kept)) + (number - (len(drawn) - 1) / 2) * height
            _bars(axis, values, places=places, height=height, look=style[run.name])
            # Each run is named once, in the first slice.
            axis.annotate(
                run.name, (values[0].high, places[0]), (36, 0), "data", "offset points", va="center",
                color=style[run.name].colour, annotation_clip=False,
            )  # fmt: skip
        axis.set_yticks(
            range(len(kept)), [f"{words.title_of(n)}\n{found[drawn[0].name][n].num_users:,} users" for n in kept]
        )
        axis.set_ylim(len(kept) - 0.5, -0.5)
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.grid(axis="y", visible=False)
        axis.grid(axis="x")
        axis.set_xlim(0, None)
        cutoff = names[0].rpartition("@")[2]
        axis.set_xlabel(f"recall@{cutoff}")
        ranges = {name: [found[run.name][name].mean for run in drawn] for name in kept}
        weak = min(kept, key=lambda name: max(ranges[name]))
        wins = f"Weakest for {words.title_of(weak)}"
        headline(axis, wins, caption=f"test recall@{cutoff} among these items or users, with 95% interval")
    details = "; ".join(
        f"{words.title_of(name)}: " + ", ".join(f"{r.name} {found[r.name][name].mean:.4f}" for r in drawn)
        for name in kept
    )
    return Picture.of(axis, f"Bars of test recall in slices with 95% intervals. {wins}. {details}.")


def _bars(axis: Axes, values: Sequence[Mean], *, places: np.ndarray, height: float, look: RunStyle) -> None:
    middles = np.array([value.mean for value in values])
    ends = np.array([[value.mean - value.low, value.high - value.mean] for value in values]).T.clip(0)
    axis.barh(places, middles, height * 0.86, color=look.colour, alpha=0.85)
    axis.errorbar(middles, places, xerr=ends, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    for value, place in zip(values, places, strict=True):
        axis.annotate(
            f"{value.mean:.4f}", (value.high, place), (4, 0), "data", "offset points", va="center", size=8, color=QUIET
        )


def _recall(run: MeasuredRun) -> dict[int, float]:
    found = {re.fullmatch(rf"{PART}recall@(\d+)", name): value for name, value in run.metrics.items()}
    return {int(match[1]): value for match, value in found.items() if match}


def _in_front_last(runs: Sequence[MeasuredRun], style: Mapping[str, RunStyle]) -> list[MeasuredRun]:
    return sorted(runs, key=lambda run: style[run.name].is_named)


def percent(value: float, _: float) -> str:
    """Format a share as a tick label."""
    return f"{round(100 * value, 6):g}%"
