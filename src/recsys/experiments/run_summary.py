"""Printed summary of a run."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from recsys.data.dataset import Part
from recsys.evaluation.metrics import CUTOFFS, NAMES
from recsys.evaluation.slices import NEW_ITEMS, SLICE_METRICS
from recsys.experiments.assembly.oracle import BEST, NO_POPULARITY
from recsys.experiments.baseline_check import verdict
from recsys.experiments.run_folder import RunFolder

PARTS = ("val", "test", "test_rolling", "test_refreshed")
# Rows of the oracles of simulated data; the other slices are in `metrics.json`.
_ORACLES = [f"{name}/{row}" for name in (BEST, NO_POPULARITY) for row in ("recall", *NEW_ITEMS)]
# Share of the relevant items from which new items that are never found are worth a warning.
_MANY = 0.01
_ADVICE = ": NO NEW ITEM IS FOUND; only features of items can place them, try "


def print_run(run: RunFolder, *, selection: str, console: Console | None = None) -> None:
    """Print the metrics of a run by part, cut-off and slice, its time, size and memory, new items, and baselines.

    Args:
        run: finished or selected run.
        selection: metric that selected the checkpoint.
        console: where to print; the terminal by default.
    """
    console = console or Console()
    metrics, state = run.metrics, run.state
    table = Table(title="metrics over the full corpus, exact search", title_justify="left", title_style="bold")
    table.add_column("part")
    table.add_column("metric", overflow="fold")
    for cutoff in CUTOFFS:
        table.add_column(f"@{cutoff}", justify="right")
    for part in PARTS:
        for name in (*NAMES, "coverage", "popularity", *SLICE_METRICS, *_ORACLES):
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
    if (found := new_items(metrics, from_recipe=bool(state.variants))) is not None:
        console.print(found, style="bold" if _ADVICE in found else None, highlight=False, soft_wrap=True)
    parts: tuple[Part, ...] = ("val", "test")
    for part in parts:
        if beside := verdict(state, metrics, selection, part=part):
            console.print(beside.line, style="bold", highlight=False, soft_wrap=True)


def new_items(metrics: Mapping[str, float], *, from_recipe: bool = False) -> str | None:
    """Return one line about new items, those without training events; None if nobody asks for them.

    The line ends with a warning if they are more than 1% of the relevant items and none is found.

    Args:
        metrics: metrics of the run; those of test count, or those of validation if there was no test.
        from_recipe: whether the run was chosen among the variants of a recipe.
    """
    part = "test" if "test/num_users" in metrics else "val"
    share, recall, shown = (
        metrics.get(f"{part}/cold_items/{name}") for name in ("relevant", "recall@100", "shown@100")
    )
    if not share or recall is None or shown is None:
        return None
    line = f"new items: {share:.1%} of the relevant {part} items, recall@100 {recall:.4f}, {shown:.1%} of the 100 shown"
    if share <= _MANY or recall:
        return line
    return f"{line}{_ADVICE}{'model.new_items_lift=1' if from_recipe else '+experiment=recommended'}"
