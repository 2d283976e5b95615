"""The table of local runs: what every run below a folder was asked for, how far it came and how it did."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from recsys.core.errors import UserError, nearest
from recsys.experiments.run_folder import METRICS, STATE, RunState, read_json, read_state


@dataclass(frozen=True)
class RunRow:
    """One run folder, as it is on disk.

    Attributes:
        path: of the run folder.
        name: its path below the folder that was read.
        overrides: what its command asked for, as {key: value} in its own words; a choice of a group is one too.
        state: content of `run.json`.
        metrics: content of `metrics.json`; empty before the first validation of the selected checkpoint.
    """

    path: Path
    name: str
    overrides: Mapping[str, str]
    state: RunState
    metrics: Mapping[str, float]

    def value(self, metric: str) -> float | None:
        """The metric, None where the run has no such number."""
        value = self.metrics.get(metric)
        return float(value) if isinstance(value, int | float) and not math.isnan(value) else None


def read_runs(root: str | Path) -> list[RunRow]:
    """Every run folder below `root`, `root` itself included, in order of paths, numbers by value (2 before 10).

    What lies within a run folder belongs to it: variants that a run chose from are no runs of the table.

    Raises:
        UserError: `root` is not a folder, or a file of a run is damaged.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder")
    return [_read(path, root) for path in sorted(_run_folders(root), key=_order)]


def is_maximized(metric: str) -> bool:
    """Whether more is better: of all but losses and times."""
    return not any(word in metric for word in ("loss", "seconds"))


def best_first(rows: Sequence[RunRow], metric: str, maximize: bool | None = None) -> list[RunRow]:
    """Rows that have the metric, best first, equal ones in the order that they came in.

    Args:
        rows: of `read_runs`.
        metric: such as `val/recall@100`.
        maximize: whether more is better; by the metric's name where it is not said.

    Raises:
        UserError: no row has the metric.
    """
    having = [(value, row) for row in rows if (value := row.value(metric)) is not None]
    if not having:
        known = {name for row in rows for name in row.metrics}
        raise UserError(f"metric: none of {len(rows)} runs has '{metric}'{nearest(metric, known)}")
    sign = -1 if (is_maximized(metric) if maximize is None else maximize) else 1
    return [row for _, row in sorted(having, key=lambda pair: sign * pair[0])]


def differing(rows: Sequence[RunRow]) -> list[dict[str, str]]:
    """For each row those of its overrides that not all rows share; a key that a row does not have is left out there."""
    keys = {key: None for row in rows for key in row.overrides}
    varied = [key for key in keys if len({row.overrides.get(key) for row in rows}) > 1]
    return [{key: row.overrides[key] for key in varied if key in row.overrides} for row in rows]


def print_runs(rows: Sequence[RunRow], metrics: Sequence[str], console: Console | None = None) -> None:
    """Print rows in the order given: name, status, what differs, metrics and seconds."""
    table = Table()
    for title in ("run", "status", "differs in"):
        table.add_column(title, overflow="fold")
    for title in (*metrics, "seconds"):
        table.add_column(title, justify="right")
    for row, differs in zip(rows, differing(rows), strict=True):
        values = [row.value(metric) for metric in metrics]
        table.add_row(
            row.name,
            row.state.status or "unknown",
            " ".join(f"{key}={value}" for key, value in differs.items()),
            *("" if value is None else f"{value:.4f}" for value in values),
            f"{row.state.seconds:.0f}",
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
    return RunRow(path, name, _overrides(path), read_state(path), metrics)


def _overrides(path: Path) -> dict[str, str]:
    """As Hydra keeps them in every run folder."""
    file = path / ".hydra/overrides.yaml"
    if not file.exists():
        return {}
    pairs = (str(override).partition("=") for override in yaml.safe_load(file.read_text()) or [])
    return {key.lstrip("+"): value for key, _, value in pairs}
