"""One retraining cycle: prepare new events -> train -> judge -> publish -> roll out -> watch -> keep or roll back.

The state is in a file, and every step can be repeated. If a cycle is killed at any moment and started again, it
continues with the files that it began with. Files that arrived meanwhile are for the next cycle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recsys.core.errors import UserError
from recsys.operations.cycle.arrivals import Arrivals, find_arrivals, list_folder
from recsys.operations.cycle.build_steps import judge, prepare, publish, train
from recsys.operations.cycle.plan import CyclePlan
from recsys.operations.cycle.pruning import prune
from recsys.operations.cycle.rollout_steps import roll_back, roll_out, watch
from recsys.operations.cycle.state import (
    PRIVATE_STEPS,
    Cycle,
    CycleOutcome,
    CycleState,
    CycleStateFile,
    CycleStep,
    now,
)

# A step updates the cycle, including its next step, and returns a message for the terminal.
STEPS: Mapping[CycleStep, Callable[[CyclePlan, Cycle], str]] = {
    "prepare": prepare,
    "train": train,
    "judge": judge,
    "publish": publish,
    "roll_out": roll_out,
    "watch": watch,
    "roll_back": roll_back,
}
_STYLES: Mapping[CycleOutcome, str] = {"kept": "green", "stopped": "bold red", "rolled_back": "bold red"}


def run_cycle(plan: CyclePlan, wait: float = 0.0, *, console: Console | None = None) -> Cycle | None:
    """Continue the current cycle, or run a new one; return None if no events have arrived.

    Args:
        plan: settings of the cycle.
        wait: seconds to wait for another cycle of the model to end.
        console: terminal to print the steps on.

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
            cycle = _CycleRunner(plan, file, console=console).run()
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
    def __init__(self, plan: CyclePlan, file: CycleStateFile, *, console: Console) -> None:
        self._plan, self._file, self._console = plan, file, console
        self._state = file.read()

    def run(self) -> Cycle | None:
        cycle = self._current()
        if cycle is None:
            cycle = self._begin()
            if cycle is None:
                return None
        else:
            interrupted = f" (interrupted {cycle.error})" if cycle.error else ""
            self._print(f"cycle {cycle.number} of {cycle.began} continues with: {cycle.step}{interrupted}")
        while cycle.step != "end":
            self._run_step(cycle)
        self._end(cycle)
        return cycle

    def _current(self) -> Cycle | None:
        """Return the cycle to continue. One that was not published and has other data or settings now is abandoned."""
        cycle = self._state.current
        if cycle is None or cycle.step not in PRIVATE_STEPS:
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
        if not arrived.has_events:
            self._report_nothing_new(arrived)
            return None
        folders = (path.name for path in self._plan.folder.glob("cycles/*") if path.name.isdecimal())
        number = 1 + max([self._state.cycles, *map(int, folders)])
        cycle = Cycle(number, now(), settings=self._plan.digest, listing=listing, new_events=arrived.rows)
        self._state.cycles, self._state.current = number, cycle
        self._file.write(self._state)
        self._print(f"cycle {number} of {self._plan.config.model}: {arrived}")
        return cycle

    def _run_step(self, cycle: Cycle) -> None:
        step, begin = cycle.step, time.monotonic()
        try:
            message = STEPS[step](self._plan, cycle)
        except UserError as error:
            if step in PRIVATE_STEPS:
                cycle.end("failed", f"at step {step}: {error}")
                self._end(cycle)
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

    def _end(self, cycle: Cycle) -> None:
        """Append the cycle to the history and clear it. Its files count as read unless it failed or was abandoned."""
        self._file.write(self._state)
        self._file.append(cycle)
        read = (self._state.read, self._state.newest)
        if cycle.outcome not in ("failed", "abandoned"):
            read = (cycle.listing.interactions, cycle.newest)
        self._state = CycleState(self._state.cycles, *read, current=None)
        self._file.write(self._state)
        self._print_result(cycle)

    def _report_nothing_new(self, arrived: Arrivals) -> None:
        self._print(f"no new events in {self._plan.root} since the last cycle read it")
        if arrived.missing:
            self._print(str(arrived))

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _print_result(self, cycle: Cycle) -> None:
        assert cycle.outcome is not None
        table = Table(title=f"cycle {cycle.number}", title_justify="left", title_style="bold", show_header=False)
        table.add_row("outcome", Text(cycle.outcome.replace("_", " "), style=_STYLES.get(cycle.outcome, "yellow")))
        table.add_row("reason", cycle.why)
        table.add_row("candidate", cycle.version or "")
        table.add_row("served before", cycle.served or "nothing")
        for name in ("recall@10", "recall@100"):
            values = [f"{side} {metrics[name]:.4f}" for side, metrics in cycle.measured.items() if name in metrics]
            if values:
                table.add_row(name, ", ".join(values))
        durations = ", ".join(f"{step.replace('_', ' ')} {seconds:.1f} s" for step, seconds in cycle.seconds.items())
        table.add_row("time", durations)
        self._console.print(table)
