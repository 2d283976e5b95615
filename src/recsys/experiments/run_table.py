"""Table of the runs below a folder: their overrides, progress and metrics."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recsys.core.errors import UserError, nearest
from recsys.core.io import atomic_write
from recsys.experiments.run_folder import METRICS, STATE, RunState, RunStatus, read_json, read_state
from recsys.experiments.run_names import OVERRIDES, differences, read_overrides


@dataclass(frozen=True)
class RunRow:
    """One run folder.

    Attributes:
        path: run folder.
        name: path of the run below the folder that was read.
        overrides: overrides of the run's command, {key: value}; choices of groups are included.
        state: content of `run.json`.
        metrics: content of `metrics.json`; empty before the first validation of the selected checkpoint.
    """

    path: Path
    name: str
    overrides: Mapping[str, str]
    state: RunState
    metrics: Mapping[str, float]

    def value(self, metric: str) -> float | None:
        """Return a metric of the run, or None if it has no such number."""
        value = self.metrics.get(metric)
        return float(value) if isinstance(value, int | float) and not math.isnan(value) else None


def read_runs(root: str | Path) -> list[RunRow]:
    """Return every run folder at or below `root`, in order of paths, with numbers by value (2 before 10).

    Folders within a run folder, such as the variants that a run chose from, are not runs of the table.

    Raises:
        UserError: If `root` is not a folder, or a file of a run is damaged.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder")
    return [_read(path, root) for path in sorted(_run_folders(root), key=_order)]


def write_overrides(path: Path, overrides: Sequence[str]) -> None:
    """Store the overrides of a run in its folder as Hydra does, unless a command has stored them.

    Args:
        path: run folder.
        overrides: arguments of `recsys train`; Hydra's options and keys are left out.
    """
    file = path / OVERRIDES
    if file.exists():
        return
    kept = [word for word in overrides if word.startswith("~") or "=" in word and not word.startswith(("-", "hydra."))]
    file.parent.mkdir(exist_ok=True)
    atomic_write(file, yaml.safe_dump(kept))


def is_maximized(metric: str) -> bool:
    """Return whether more of a metric is better, which holds for all but losses and times."""
    return not any(word in metric for word in ("loss", "seconds"))


def best_first(rows: Sequence[RunRow], metric: str, *, maximize: bool | None = None) -> list[RunRow]:
    """Return the rows that have a metric, best first; equal ones keep their order.

    Args:
        rows: rows that `read_runs` returned.
        metric: metric such as `val/recall@100`.
        maximize: whether more is better; None to decide by the name of the metric.

    Raises:
        UserError: If no row has the metric.
    """
    having = [(value, row) for row in rows if (value := row.value(metric)) is not None]
    if not having:
        known = {name for row in rows for name in row.metrics}
        raise UserError(f"metric: none of {len(rows)} runs has '{metric}'{nearest(metric, known)}")
    sign = -1 if (is_maximized(metric) if maximize is None else maximize) else 1
    return [row for _, row in sorted(having, key=lambda pair: sign * pair[0])]


def print_runs(
    rows: Sequence[RunRow], metrics: Sequence[str], *, console: Console | None = None, have_ended: bool = False
) -> None:
    """Print the rows in their order: the overrides that differ, status, metrics, seconds and folder.

    Args:
        rows: runs.
        metrics: metrics to show.
        console: where to print; the terminal by default.
        have_ended: no run is running any more, so one without an end has failed.
    """
    table = Table()
    for title in ("run", "status"):
        table.add_column(title, overflow="fold")
    for title in (*metrics, "seconds"):
        table.add_column(title, justify="right")
    table.add_column("folder", overflow="fold")
    for row, differs in zip(rows, differences([row.overrides for row in rows]), strict=True):
        values = [row.value(metric) for metric in metrics]
        table.add_row(
            escape(" ".join(f"{key}={value}" for key, value in differs.items()) or row.name),
            "failed" if have_ended and row.state.status == RunStatus.RUNNING else row.state.status or "unknown",
            *("" if value is None else f"{value:.4f}" for value in values),
            f"{row.state.seconds:.0f}",
            row.name,
        )
    (console or Console()).print(table)


def _run_folders(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        if STATE in files:
            below.clear()
            yield Path(folder)


def _order(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in path.parts]


def _read(path: Path, root: Path) -> RunRow:
    name = path.relative_to(root).as_posix() if path != root else path.name
    metrics = read_json(path / METRICS) if (path / METRICS).exists() else {}
    return RunRow(path, name, read_overrides(path), read_state(path), metrics)
