"""Stopped cycles: why they were stopped, and the commands that accept them or judge them with fitting settings."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recsys.core.errors import UserError
from recsys.operations.cycle.plan import CyclePlan
from recsys.operations.cycle.state import Cycle, CycleState, now
from recsys.operations.gates.fitting import fitting_settings
from recsys.operations.gates.staging import STAGED
from recsys.operations.gates.verdict import VERDICT, Acceptance, Verdict, explain

# Keys that an acceptance needs. Its candidate is trained and judged.
_PLACES = ("store=", "folder=", "model=", "hosts=", "gateways=", "followers=", "watch.", "keep=", "registry=")


@dataclass(frozen=True, kw_only=True)
class AcceptRequest:
    """Request of a person to release a stopped candidate.

    Attributes:
        cycle: number of the stopped cycle.
        why: reason, which is recorded.
        who: name of the person; None for login name and host.
    """

    cycle: str
    why: str
    who: str | None = None

    def __post_init__(self) -> None:
        if not self.why.strip():
            raise UserError(f"why: found nothing, expected accept={self.cycle} why='REASON'; the reason is recorded")


@dataclass(frozen=True, kw_only=True)
class StopAdvice:
    """What a person needs to know about a stopped cycle.

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


def accepted_cycle(plan: CyclePlan, state: CycleState, *, stops: Sequence[Cycle], request: AcceptRequest) -> Cycle:
    """Return the accepted cycle, ready for its first step.

    Args:
        plan: settings of the command.
        state: present state.
        stops: stopped cycles, oldest first.
        request: what is to be accepted, and why.

    Raises:
        UserError: If the cycle is not stopped, has no release, or another cycle is unfinished.
    """
    place, current = f"accept={request.cycle}", state.current
    if current is not None and str(current.number) == request.cycle and current.accepted is not None:
        return current
    stop = next((one for one in stops if str(one.number) == request.cycle), None)
    if stop is None:
        numbers = ", ".join(str(one.number) for one in stops)
        raise UserError(f"{place}: no such cycle is stopped; {f'stopped: {numbers}' if stops else 'none is stopped'}")
    if current is not None and current.number != stop.number:
        raise UserError(
            f"{place}: cycle {current.number} is unfinished at step {current.step}; "
            "the command without accept= continues it"
        )
    store = str(plan.store.root.absolute())
    if stop.store and stop.store != store:
        raise UserError(f"store: found {store}, expected store={stop.store}, which cycle {stop.number} was judged for")
    run = plan.run_folder(stop)
    if stop.version is None or not (run / STAGED / stop.version).is_dir():
        raise UserError(f"{place}: {run} holds no release of the candidate ({stop.why}), so there is nothing to accept")
    try:
        verdict = Verdict.load(run / VERDICT)
    except (OSError, ValueError) as error:
        raise UserError(f"{run / VERDICT}: cannot be read ({error}), expected the verdict to be accepted") from error
    failures = next((one.failed for one in (verdict, *reversed(verdict.former)) if one.failed), [])
    who = request.who or _login()
    accepted = Acceptance.of(failures, who=who, when=now(), why=request.why.strip())
    return stop.reopened("accept", stop.settings, accepted=accepted)


def _login() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):
        # The user id of a container may have no name.
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"
