"""Writes the pages of a model's cycles. A page that cannot be written never fails a cycle."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from recsys.core.io import atomic_write
from recsys.operations.cycle.plan import CyclePlan
from recsys.operations.cycle.state import Cycle
from recsys.operations.gates.verdict import VERDICT, Verdict
from recsys.reports.cycles.cycles_page import cycles_page
from recsys.reports.cycles.stop_advice import advise
from recsys.reports.cycles.verdict_page import gate_purposes, verdict_page

log = logging.getLogger("recsys")
VERDICT_PAGE, CYCLES_PAGE = "verdict.html", "cycles.html"
# Next steps of a cycle whose verdict has just been made or changed.
_JUDGED = ("publish", "end")


def write_pages(plan: CyclePlan, cycle: Cycle) -> None:
    """Write the page of the cycle's verdict if that has changed, and the page of all cycles."""
    run = plan.run_folder(cycle)
    with _logged(run / VERDICT_PAGE):
        if cycle.step in _JUDGED and (run / VERDICT).exists():
            advice, name = advise(plan, cycle), f"Cycle {cycle.number} of {plan.config.model}"
            if advice.verdict is not None:
                purposes = gate_purposes(plan.config.gates)
                content = verdict_page(name, advice.verdict, purposes=purposes, advice=advice)
                atomic_write(run / VERDICT_PAGE, content)
    write_cycles_page(plan)


def write_cycles_page(plan: CyclePlan) -> None:
    """Replace the page of all cycles, if there are any."""
    with _logged(plan.folder / CYCLES_PAGE):
        if plan.folder.is_dir():
            atomic_write(plan.folder / CYCLES_PAGE, cycles_page(plan.folder, plan.store, model=str(plan.config.model)))


def write_verdict_page(run: Path, verdict: Verdict, *, gates: DictConfig) -> Path:
    """Write the page of a verdict that no cycle made into the run folder, and return its path."""
    path = run / VERDICT_PAGE
    with _logged(path):
        atomic_write(path, verdict_page(f"Run {run.name}", verdict, purposes=gate_purposes(gates)))
    return path


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # The files that the page shows are complete without it.
        log.warning("%s: not written (%s: %s)", path, type(error).__name__, error)
