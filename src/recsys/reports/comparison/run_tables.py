"""Tables of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from recsys.evaluation.slices import NEW_ITEMS, SHOWN
from recsys.experiments.run_names import differences
from recsys.reports.comparison import narrative as words
from recsys.reports.comparison.differences import PART, Difference
from recsys.reports.comparison.measured import MeasuredRun
from recsys.reports.presentation.report_table import ReportTable

_SETTINGS_SHOWN = 30
# Data and split are compared by fingerprints, and loggers do not change figures.
_ALIKE = ("data", "split", "logger")


def metrics(runs: Sequence[MeasuredRun], names: Sequence[str], *, baseline: MeasuredRun) -> ReportTable:
    """Tabulate the test metrics of all runs, best first by the first metric."""
    ordered = sorted(runs, key=lambda run: -run.metrics[PART + names[0]])
    cutoff = names[0].rpartition("@")[2]
    shown = [*names, *(f"{name}@{cutoff}" for name in ("coverage", "popularity", *NEW_ITEMS))]
    shown = list(dict.fromkeys(shown))
    shown = [name for name in shown if any(PART + name in run.metrics for run in runs)]
    rows = [
        (
            run.name + (" (baseline)" if run is baseline else ""),
            *(_number(run.metrics.get(PART + name)) for name in shown),
        )
        for run in ordered
    ]
    best = {number for number, run in enumerate(ordered) if run.metrics[PART + names[0]] == _best(ordered, names[0])}
    note = f"Best first in {names[0]}; mean over test users."
    if f"popularity@{cutoff}" in shown:
        note += " Popularity: training events of the items shown, in multiples of the average trained item's."
    if f"{SHOWN}@{cutoff}" in shown:
        note += " cold_items: items without training events; shown: their share of the items shown."
    return ReportTable("Test metrics", ("run", *shown), tuple(rows), note, frozenset(best))


def gains(found: Sequence[Difference], title: str) -> ReportTable:
    """Tabulate differences with their intervals, corrected p-values and verdicts."""
    baselines = {difference.baseline for difference in found}
    is_one = len(baselines) == 1
    rows = []
    for difference in found:
        pair = difference.paired
        rows.append(
            (
                words.title_of(pair.metric),
                difference.run if is_one else f"{difference.run} − {difference.baseline}",
                words.gain(difference),
                words.judged(difference),
                words.interval(difference),
                words.p_text(difference.p_value),
                f"{pair.second:.4f}",
                f"{pair.first:.4f}",
                f"{pair.num_users:,}",
            )
        )
    other = baselines.pop() if is_one else "the other"
    columns = ("", "run", "gain", "verdict", "95% interval", "p (Holm)", "mean", f"of {other}", "users")
    note = (
        f"Paired bootstrap over users, 10,000 samples; p corrected by Holm for these {len(rows)} comparisons; "
        "better and worse: p < 0.05. Intervals are not corrected."
    )
    return ReportTable(f"{title} from {other}" if is_one else title, columns, tuple(rows), note)


def cost(runs: Sequence[MeasuredRun]) -> ReportTable:
    """Tabulate the time, steps, speed, size and memory of each run."""
    rows = [
        (
            run.name,
            _count(run.state.seconds or None),
            _count(run.state.steps),
            _count(run.state.targets_per_second),
            _count(run.state.parameters.get("total")),
            _gigabytes(run.state.peak_memory_bytes),
        )
        for run in runs
    ]
    note = "Seconds over all starts, evaluation included. Times of different machines or loads are not comparable."
    columns = ("run", "seconds", "steps", "targets per second", "parameters", "peak memory, GB")
    return ReportTable("Cost", columns, tuple(rows), note)


def settings(runs: Sequence[MeasuredRun]) -> ReportTable:
    """Tabulate the settings in which the runs differ."""
    varied = differences([run.row.overrides for run in runs])
    found = {key for one in varied for key in one if key.partition(".")[0] not in _ALIKE}
    # Keys that are interpolated from others differ too, so the shortest keys come first.
    keys = sorted(found, key=lambda key: (key.count("."), key))
    rows = [(key, *(one.get(key, "") for one in varied)) for key in keys[:_SETTINGS_SHOWN]]
    note = "Empty: the default."
    if len(keys) > _SETTINGS_SHOWN:
        note += f" {len(keys) - _SETTINGS_SHOWN} more are not shown."
    return ReportTable("Settings that differ", ("setting", *(run.name for run in runs)), tuple(rows), note)


def _best(runs: Sequence[MeasuredRun], name: str) -> float:
    return max(run.metrics[PART + name] for run in runs)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if value < 10 else f"{value:.2f}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _gigabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:.2f}"
