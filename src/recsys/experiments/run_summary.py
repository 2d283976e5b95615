"""Printed summary of a run."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from recsys.evaluation.metrics import CUTOFFS, NAMES
from recsys.evaluation.slices import ITEM_SLICES, USER_SLICES
from recsys.experiments.popularity_check import verdict
from recsys.experiments.run_folder import RunFolder

PARTS = ("val", "test", "test_rolling")


def print_run(run: RunFolder, *, selection: str, console: Console | None = None) -> None:
    """Print the metrics of a run by part, cut-off and slice, its time, size and memory, and popularity beside it.

    Args:
        run: finished or selected run.
        selection: metric that selected the checkpoint.
        console: where to print; the terminal by default.
    """
    console = console or Console()
    metrics, state = run.metrics, run.state
    table = Table(title="metrics over the full corpus, exact search", title_justify="left", title_style="bold")
    table.add_column("part")
    table.add_column("metric")
    for cutoff in CUTOFFS:
        table.add_column(f"@{cutoff}", justify="right")
    for part in PARTS:
        rows = [
            *NAMES,
            "coverage",
            "popularity",
            *(f"{name}/recall" for name in (*ITEM_SLICES, *USER_SLICES, "best_reachable")),
        ]
        for name in rows:
            values = [metrics.get(f"{part}/{name}@{cutoff}") for cutoff in CUTOFFS]
            if any(value is not None for value in values):
                table.add_row(part, name, *("" if value is None else f"{value:.4f}" for value in values))
        table.add_section()
    console.print(table)
    console.print(
        f"{state.steps} steps ({state.selected} selected), {state.targets_per_second or 0.0:,.0f} targets/s, "
        f"{state.seconds:.0f} s, {(state.peak_memory_bytes or 0) / 2**30:.2f} GiB peak, "
        f"{state.parameters.get('total', 0):,} parameters ({state.parameters.get('tables', 0):,} in tables), "
        f"data {state.dataset_fingerprint}",
        soft_wrap=True,
    )
    if beside := verdict(state, metrics, selection):
        console.print(beside, style="bold", highlight=False, soft_wrap=True)
