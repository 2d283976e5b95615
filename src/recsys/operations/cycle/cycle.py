"""One retraining cycle: prepare new events -> train -> judge -> publish -> roll out -> watch -> keep or roll back.

The state is in a file, and every step can be repeated. If a cycle is killed at any moment and started again, it
continues with the files that it began with. Files that arrived meanwhile are for the next cycle. A stopped cycle is
judged again if no events have arrived and the settings of gates or packing have changed, or it is accepted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from filelock import FileLock, Timeout
from rich.console import Console
from rich.text import Text

from recsys.core.errors import UserError
from recsys.core.suppression import frozen
from recsys.operations.cycle.arrivals import Arrivals, find_arrivals, list_folder
from recsys.operations.cycle.build_steps import accept, judge, prepare, publish, train
from recsys.operations.cycle.plan import CyclePlan
from recsys.operations.cycle.pruning import prune
from recsys.operations.cycle.rollout_steps import roll_back, roll_out, watch
from recsys.operations.cycle.state import (
    PRIVATE_STEPS,
    Cycle,
    CycleState,
    CycleStateFile,
    CycleStep,
    now,
)
from recsys.operations.cycle.stops import AcceptRequest, accepted_cycle

# A step updates the cycle, including its next step, and returns a message for the terminal.
STEPS: Mapping[CycleStep, Callable[[CyclePlan, Cycle], str]] = {
    "prepare": prepare,
    "train": train,
    "judge": judge,
    "accept": accept,
    "publish": publish,
    "roll_out": roll_out,
    "watch": watch,
    "roll_back": roll_back,
}


def run_cycle(
    plan: CyclePlan,
    wait: float = 0.0,
    *,
    console: Console | None = None,
    request: AcceptRequest | None = None,
    report: Callable[[Cycle], None] = lambda cycle: None,  # noqa: ARG005
) -> Cycle | None:
    """Continue the current cycle, run a new one, or judge a stopped one again; return None if there is nothing to do.

    Args:
        plan: settings of the cycle.
        wait: seconds to wait for another cycle of the model to end.
        console: terminal to print the steps on.
        request: stopped cycle to release.
        report: called after each step, and when the cycle has ended; again if the process was killed meanwhile.

    Raises:
        UserError: If another cycle is running, or a step fails. A failure before `publish` ends the cycle. After a
            later failure, the cycle continues with the failed step when the command is started again.
        Exception: If a step raises anything else, such as a fault of a gate. The state records the error, nothing more
            is published, and the cycle continues with that step when the command is started again.
    """
    console = console or Console()
    plan.folder.mkdir(parents=True, exist_ok=True)
    file = CycleStateFile(plan.folder)
    try:
        with FileLock(plan.folder / ".lock", timeout=wait):
            cycle = _CycleRunner(plan, file, console=console, report=report).run(request)
            if removed := prune(plan):
                console.print(Text(f"keep={plan.config.keep}: removed the runs of {len(removed)} older cycles"))
            return cycle
    except Timeout as error:
        current = file.read().current
        doing = "" if current is None else f" (cycle {current.number}, begun {current.began}, at step {current.step})"
        raise UserError(
            f"{plan.folder}: another cycle of {plan.config.model} is running{doing}; waited {wait:g} s, "
            "wait=SECONDS waits longer"
        ) from error


class _CycleRunner:
    def __init__(
        self, plan: CyclePlan, file: CycleStateFile, *, console: Console, report: Callable[[Cycle], None]
    ) -> None:
        self._plan, self._file, self._console, self._report = plan, file, console, report
        self._state = file.read()

    def run(self, request: AcceptRequest | None) -> Cycle | None:
        cycle = self._accepted(request) if request is not None else self._current()
        if cycle is not None:
            interrupted = f" (interrupted {cycle.error})" if cycle.error else ""
            self._print(f"cycle {cycle.number} of {cycle.began} continues with: {cycle.step}{interrupted}")
        else:
            cycle = self._begin() or self._judged_again()
        while cycle is not None and cycle.step != "end":
            self._run_step(cycle)
        if cycle is not None:
            self._end(cycle)
        return cycle

    def _accepted(self, request: AcceptRequest) -> Cycle:
        # The acceptance is recorded before it has any effect.
        return self._open(accepted_cycle(self._plan, self._state, stops=self._file.stops(), request=request))

    def _judged_again(self) -> Cycle | None:
        """Return the newest stopped cycle, to be judged, if the settings of gates or packing have changed since."""
        stop, settings = next(reversed(self._file.stops()), None), self._plan.digest
        if stop is None or stop.settings == settings:
            return None
        if stop.settings.partition("-")[2] == settings.partition("-")[2]:
            command = self._plan.command_line("force=true")
            self._print(f"the settings of training have changed; to train on the same files with them: {command}")
            return None
        self._print(f"cycle {stop.number} was {stop.why}; the settings have changed: it is judged again")
        return self._open(stop.reopened("judge", settings))

    def _open(self, cycle: Cycle) -> Cycle:
        self._state.current = cycle
        self._file.write(self._state)
        return cycle

    def _current(self) -> Cycle | None:
        """Return the cycle to continue. One that was not published and has other data or settings now is abandoned."""
        cycle = self._state.current
        if cycle is None or cycle.step not in PRIVATE_STEPS:
            return cycle
        if cycle.attempt > 1:
            # Its training is finished, so only the settings of its judgement count.
            cycle.settings = self._plan.digest
            return cycle
        if cycle.settings != self._plan.digest:
            why = "the settings have changed since it began"
        elif changed := cycle.listing.changed():
            why = f"{changed[0]} has changed since the cycle began"
        else:
            return cycle
        cycle.end("abandoned", f"at step {cycle.step}: {why}")
        self._end(cycle)
        return None

    def _begin(self) -> Cycle | None:
        listing = list_folder(self._plan.root)
        arrived = find_arrivals(listing.interactions, self._state.read)
        if not arrived.has_events and not self._plan.config.force:
            self._report_nothing_new(arrived)
            return None
        folders = (path.name for path in self._plan.folder.glob("cycles/*") if path.name.isdecimal())
        number = 1 + max([self._state.cycles, *map(int, folders)])
        cycle = Cycle(
            number,
            now(),
            settings=self._plan.digest,
            listing=listing,
            suppressed=frozen(self._plan.training.data.get("suppressed"), store=self._plan.store.root),
            new_events=arrived.rows,
            files=len(listing.interactions),
            store=str(self._plan.store.root.absolute()),
        )
        self._state.cycles = number
        self._open(cycle)
        self._print(f"cycle {number} of {self._plan.config.model}: {arrived}")
        return cycle

    def _run_step(self, cycle: Cycle) -> None:
        step, begin = cycle.step, time.monotonic()
        try:
            message = STEPS[step](self._plan, cycle)
        except UserError as error:
            if step in PRIVATE_STEPS and cycle.attempt == 1:
                cycle.end("failed", f"at step {step}: {error}")
                self._end(cycle)
            elif step in PRIVATE_STEPS and cycle.accepted is None:
                # It cannot be judged with these settings, and stays stopped.
                self._state.current = None
                self._file.write(self._state)
            raise
        except Exception as error:
            # The step may have changed the cycle before it failed. Only the error is recorded.
            self._state = self._file.read()
            if self._state.current is not None:
                self._state.current.error = f"at step {step}: {type(error).__name__}: {error}"
                self._file.write(self._state)
            raise
        cycle.seconds[step] = round(cycle.seconds.get(step, 0.0) + time.monotonic() - begin, 3)
        cycle.error = ""
        self._file.write(self._state)
        self._print(f"{step.replace('_', ' ')}: {message}")
        if cycle.step != "end":
            self._report(cycle)

    def _end(self, cycle: Cycle) -> None:
        """Append the cycle to the history and clear it. Its files count as read unless it failed or was abandoned."""
        self._file.write(self._state)
        self._file.append(cycle)
        self._print(f"cycle {cycle.number} is {str(cycle.outcome).replace('_', ' ')}: {cycle.why}")
        self._report(cycle)
        read = (self._state.read, self._state.newest)
        if cycle.attempt == 1 and cycle.outcome not in ("failed", "abandoned"):
            read = (cycle.listing.interactions, cycle.newest)
        self._state = CycleState(self._state.cycles, *read, current=None)
        self._file.write(self._state)

    def _report_nothing_new(self, arrived: Arrivals) -> None:
        self._print(f"no new events in {self._plan.root} since the last cycle read it")
        if arrived.missing:
            self._print(str(arrived))

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)
