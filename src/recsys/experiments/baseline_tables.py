"""Printed table of baselines."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from rich.table import Table

from recsys.baselines.tuning import describe
from recsys.core.screen import screen
from recsys.experiments.run_folder import RunFolder

METRICS = ("recall@10", "ndcg@10", "recall@100")


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
    screen().print(table)


def _cell(value: float | None, column: Collection[float | None]) -> str:
    if value is None:
        return ""
    best = max(other for other in column if other is not None)
    return f"[bold]{value:.4f}[/bold]" if value == best else f"{value:.4f}"
