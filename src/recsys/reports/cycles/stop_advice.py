"""Explanation of stopped cycles: what stopped them, and the commands that end the stop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from recsys.operations.cycle.plan import CyclePlan
from recsys.operations.cycle.state import Cycle, CycleStateFile
from recsys.operations.gates.verdict import VERDICT, Verdict, explain
from recsys.reports.cycles.fitting import fitting_settings

# Keys that an acceptance needs. Its candidate is trained and judged.
_PLACES = ("store=", "folder=", "model=", "hosts=", "gateways=", "followers=", "watch.", "keep=", "registry=")


@dataclass(frozen=True, kw_only=True)
class StopAdvice:
    """Reasons of a stopped cycle, and the commands that end the stop.

    Attributes:
        cycle: the cycle.
        verdict: its verdict; None if the file cannot be read.
        accept: command that releases the candidate; empty if no release could be made.
        fits: command whose settings would let the candidate pass; empty if no setting fits.
        fits_days: the same, exempting the days that are named; empty if no failure is about a day.
    """

    cycle: Cycle
    verdict: Verdict | None
    accept: str
    fits: str
    fits_days: str

    def lines(self) -> list[str]:
        """Return the explanation for a terminal."""
        failures = self.verdict.failed if self.verdict is not None else []
        lines = [f"cycle {self.cycle.number} is {self.cycle.why or 'stopped'}; no release went out since"]
        lines += [f"  {explain(row)}" for row in failures]
        if self.verdict is not None:
            lines.append(f"page: {Path(self.verdict.run).absolute() / 'verdict.html'}")
        lines.append(
            "if the cause is a fault, correct data or settings: the next cycle with new or rewritten files retries"
        )
        if self.fits_days:
            lines.append(f"if the named days were unusual for a known reason: {self.fits_days}")
        if self.fits:
            lines.append(f"setting that fits, if such values are legitimate: {self.fits}")
        else:
            lines.append("no setting of a gate fits this")
        if self.accept:
            lines.append(f"to release this candidate anyway: {self.accept}")
        return lines


def advise(plan: CyclePlan, cycle: Cycle) -> StopAdvice:
    """Return the explanation of a stopped cycle, with the commands that end the stop."""
    try:
        verdict = Verdict.load(plan.run_folder(cycle) / VERDICT)
    except (OSError, ValueError):
        verdict = None
    failures = [] if verdict is None else verdict.failed
    fits, days = (fitting_settings(failures, names_days=named) for named in (False, True))
    accept = plan.command_line(f"accept={cycle.number}", "why=REASON", only=_PLACES)
    return StopAdvice(
        cycle=cycle,
        verdict=verdict,
        accept=accept if cycle.version is not None else "",
        fits=plan.command_line(*fits) if fits else "",
        fits_days=plan.command_line(*days) if days and days != fits else "",
    )


def print_stops(plan: CyclePlan, console: Console | None = None) -> list[Cycle]:
    """Explain every stopped cycle after which no release went out, and return these cycles, oldest first."""
    console, stops = console or Console(), CycleStateFile(plan.folder).stops()
    for stop in stops:
        for line in advise(plan, stop).lines():
            console.print(Text(line), soft_wrap=True)
    return stops
