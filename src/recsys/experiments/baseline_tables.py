"""Printed tables of baselines, and of the gain of a run over them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recsys.baselines.tuning import describe
from recsys.core.errors import UserError
from recsys.evaluation.significance import compare_runs, holm
from recsys.experiments.run_folder import STATE, RunFolder, read_state

log = logging.getLogger("recsys")

METRICS = ("recall@10", "ndcg@10", "recall@100")
# Width of tables that are not printed to a terminal.
_WIDTH = 160


def print_baselines(runs: Mapping[str, RunFolder], metric: str) -> None:
    """Print the chosen settings of each baseline with validation and test metrics; the best of a column is bold."""
    names = [metric, *(f"test/{name}" for name in (*METRICS, "coverage@10"))]
    names += [f"test_rolling/{name}" for name in METRICS]
    values = {name: {run: folder.metrics.get(name) for run, folder in runs.items()} for name in names}
    names = [name for name in names if any(value is not None for value in values[name].values())]
    table = Table(
        "baseline", "settings", title="full corpus, exact search, fitted on train + val", title_justify="left"
    )
    for name in (*names, "seconds"):
        table.add_column(name.replace("/", "\n"), justify="right")
    for run, folder in runs.items():
        cells = [_cell(values[name][run], values[name].values()) for name in names]
        table.add_row(run, describe(folder.state.settings), *cells, f"{folder.state.seconds:.0f}")
    _print(table)


def print_gains(against: Path, runs: Mapping[str, RunFolder]) -> None:
    """Print the gain of a run over each baseline, paired over test users.

    Holm's method corrects the p-values for the number of rows.

    Args:
        against: folder of the run.
        runs: folders of the baselines by name.

    Raises:
        UserError: If the run has no `per_user.parquet`, or one of other users.
    """
    if not (against / STATE).exists():
        raise UserError(f"against: {against / STATE} is missing; expected the folder of a finished run")
    theirs = read_state(against).dataset_fingerprint
    ours = {str(run.state.dataset_fingerprint) for run in runs.values()}
    if ours != {theirs}:
        log.warning(
            "%s: prepared as data %s, the baselines as %s: users are paired by user_id", against, theirs, *sorted(ours)
        )
    found = {
        (name, gain.metric): gain
        for name, run in runs.items()
        for gain in compare_runs(run.path / "per_user.parquet", against / "per_user.parquet", metrics=METRICS)
    }
    p_values = holm({f"{name} {metric}": gain.p_value for (name, metric), gain in found.items()})
    table = Table(
        "metric",
        "baseline",
        title=f"test metrics of {against} minus each baseline, paired over users",
        title_justify="left",
    )
    for column in ("users", "baseline", "run", "difference", "95% interval", "p (Holm)"):
        table.add_column(column, justify="right")
    for metric in METRICS:
        for name in runs:
            gain = found[name, metric]
            interval = f"{gain.low:+.4f} {gain.high:+.4f}"
            row = (f"{gain.num_users}", f"{gain.first:.4f}", f"{gain.second:.4f}", f"{gain.difference:+.4f}", interval)
            table.add_row(metric, name, *row, f"{p_values[f'{name} {metric}']:.4f}")
        table.add_section()
    _print(table)


def _cell(value: float | None, column: Collection[float | None]) -> str:
    if value is None:
        return ""
    best = max(other for other in column if other is not None)
    return f"[bold]{value:.4f}[/bold]" if value == best else f"{value:.4f}"


def _print(table: Table) -> None:
    # A narrow table would cut figures off.
    console = Console()
    (console if console.is_terminal else Console(width=_WIDTH)).print(table)
