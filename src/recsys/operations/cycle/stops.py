"""Release of a stopped candidate on the request of a person."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from recsys.core.errors import UserError
from recsys.operations.cycle.plan import CyclePlan
from recsys.operations.cycle.state import Cycle, CycleState, now
from recsys.operations.gates.staging import STAGED
from recsys.operations.gates.verdict import VERDICT, Acceptance, Verdict


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


def accepted_cycle(plan: CyclePlan, state: CycleState, *, stops: Sequence[Cycle], request: AcceptRequest) -> Cycle:
    """Return the accepted cycle, ready for its first step.

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
