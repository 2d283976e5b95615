"""One retraining cycle: what arrived -> prepare -> train -> gates -> publish -> roll out -> watch -> keep or roll back.

Where it stands is in a file; every step may be done again. Killed at any moment and started again, a cycle goes on with
the files that it began with, and what arrived meanwhile is for the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recsys.core.errors import UserError
from recsys.operations.cycle.arrivals import Arrivals, compare, list_folder
from recsys.operations.cycle.build_steps import judge, prepare, publish, train
from recsys.operations.cycle.plan import Plan
from recsys.operations.cycle.pruning import prune
from recsys.operations.cycle.rollout_steps import roll_back, roll_out, watch
from recsys.operations.cycle.state import INSIDE, Cycle, Outcome, State, StateFile, now

# What a step does to the cycle (the step after it, among others), and what it tells.
_STEPS: Mapping[str, Callable[[Plan, Cycle], str]] = {
    "prepare": prepare,
    "train": train,
    "judge": judge,
    "publish": publish,
    "roll_out": roll_out,
    "watch": watch,
    "roll_back": roll_back,
}
_STYLES: Mapping[Outcome, str] = {"kept": "green", "stopped": "bold red", "rolled_back": "bold red"}


def run_cycle(plan: Plan, wait: float = 0.0, console: Console | None = None) -> Cycle | None:
    """Go on with the cycle that is under way, or run a new one; None where no events have arrived.

    Args:
        plan: what is asked for.
        wait: seconds for another cycle of the model to end.
        console: shows the steps.

    Raises:
        UserError: another cycle is running, or a step fails. Before anything is published that ends the cycle; after
            that, the cycle goes on with this step when the command is started again.
    """
    console = console or Console()
    plan.folder.mkdir(parents=True, exist_ok=True)
    file = StateFile(plan.folder)
    try:
        with FileLock(plan.folder / ".lock", timeout=wait):
            cycle = _Runner(plan, file, console).run()
            if removed := prune(plan):
                console.print(Text(f"keep={plan.config.keep}: {len(removed)} runs of older cycles are removed"))
            return cycle
    except Timeout as error:
        current = file.read().current
        doing = "" if current is None else f" (cycle {current.number}, begun {current.began}, at step {current.step})"
        raise UserError(
            f"{plan.folder}: another cycle of {plan.config.model} is running{doing}; waited {wait:g} s, "
            "wait=SECONDS waits longer"
        ) from error


class _Runner:
    def __init__(self, plan: Plan, file: StateFile, console: Console) -> None:
        self._plan, self._file, self._console = plan, file, console
        self._state = file.read()

    def run(self) -> Cycle | None:
        cycle = self._under_way()
        if cycle is None:
            cycle = self._begin()
            if cycle is None:
                return None
        else:
            self._say(f"cycle {cycle.number} of {cycle.began} goes on with: {cycle.step}")
        while cycle.step != "end":
            self._do(cycle)
        self._end(cycle)
        return cycle

    def _under_way(self) -> Cycle | None:
        """The cycle to go on with. What was not published yet is left where it would be of other data or settings."""
        cycle = self._state.current
        if cycle is None or cycle.step not in INSIDE:
            return cycle
        if cycle.settings != self._plan.digest:
            why = "the settings are others than when it began"
        elif changed := cycle.listing.changed():
            why = f"{changed[0]} is not any more what it was when the cycle began"
        else:
            return cycle
        cycle.end("abandoned", f"at step {cycle.step}: {why}")
        self._end(cycle)
        return None

    def _begin(self) -> Cycle | None:
        listing = list_folder(self._plan.root)
        arrived = compare(listing.interactions, self._state.read)
        if not arrived.are_there:
            self._nothing_new(arrived)
            return None
        folders = (path.name for path in self._plan.folder.glob("cycles/*") if path.name.isdecimal())
        number = 1 + max([self._state.cycles, *map(int, folders)])
        cycle = Cycle(number, now(), self._plan.digest, listing, arrived.rows)
        self._state.cycles, self._state.current = number, cycle
        self._file.write(self._state)
        self._say(f"cycle {number} of {self._plan.config.model}: {arrived}")
        return cycle

    def _do(self, cycle: Cycle) -> None:
        step, begin = cycle.step, time.monotonic()
        try:
            told = _STEPS[step](self._plan, cycle)
        except UserError as error:
            if step not in INSIDE:
                raise
            cycle.end("failed", f"at step {step}: {error}")
            self._end(cycle)
            raise
        cycle.seconds[step] = round(cycle.seconds.get(step, 0.0) + time.monotonic() - begin, 3)
        self._file.write(self._state)
        self._say(f"{step.replace('_', ' ')}: {told}")

    def _end(self, cycle: Cycle) -> None:
        """Tell of the cycle, and forget it; what it read counts as read unless nothing could be made of it."""
        self._file.write(self._state)
        self._file.tell(cycle)
        read = (self._state.read, self._state.newest)
        if cycle.outcome not in ("failed", "abandoned"):
            read = (cycle.listing.interactions, cycle.newest)
        self._state = State(self._state.cycles, *read, current=None)
        self._file.write(self._state)
        self._show(cycle)

    def _nothing_new(self, arrived: Arrivals) -> None:
        self._say(f"no new events in {self._plan.root} since those that were read")
        if arrived.gone:
            self._say(str(arrived))

    def _say(self, told: str) -> None:
        self._console.print(Text(told), soft_wrap=True)

    def _show(self, cycle: Cycle) -> None:
        assert cycle.outcome is not None
        table = Table(title=f"cycle {cycle.number}", title_justify="left", title_style="bold", show_header=False)
        table.add_row("outcome", Text(cycle.outcome.replace("_", " "), style=_STYLES.get(cycle.outcome, "yellow")))
        table.add_row("why", cycle.why)
        table.add_row("candidate", cycle.version or "")
        table.add_row("served before", cycle.served or "nothing")
        for name in ("recall@10", "recall@100"):
            values = [f"{side} {metrics[name]:.4f}" for side, metrics in cycle.measured.items() if name in metrics]
            if values:
                table.add_row(name, ", ".join(values))
        spent = ", ".join(f"{step.replace('_', ' ')} {seconds:.1f} s" for step, seconds in cycle.seconds.items())
        table.add_row("time", spent)
        self._console.print(table)
