"""Database of a sweep: its runs, their arguments and their results."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from recsys.core.errors import UserError
from recsys.experiments.sweep.file import Sweep

FILE = "study.db"
_STATES = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class Record:
    """One run of a sweep.

    Attributes:
        number: number of the run from 0, and name of its folder.
        status: `running` (or interrupted), `done`, `stopped` (by hyperband) or `failed`.
        arguments: KEY=value of each parameter.
        history: metric at each validation that the sweep saw.
        value: metric of the selected checkpoint; None unless the run is done.
        error: error of a failed run.
    """

    number: int
    status: str
    arguments: tuple[str, ...]
    history: tuple[float, ...]
    value: float | None
    error: str | None


class SweepStudy:
    """Runs of a sweep, stored by Optuna in an SQLite file, whose transactions survive a kill at any moment.

    The arguments of a run depend on its number and, for bayes, on the results so far, but not on the number of starts
    of the sweep. Grid counts through all combinations, the last parameter fastest. Random and bayes (a tree-structured
    Parzen estimator) draw from the distributions.

    Args:
        folder: folder of the sweep.
        sweep: content of the sweep file.
        max_runs: bound on the number of runs in any state; None for a whole grid.

    Raises:
        UserError: If there is no bound.
    """

    def __init__(self, folder: Path, sweep: Sweep, *, max_runs: int | None) -> None:
        self.sweep = sweep
        self._grid = None
        bounds = [] if max_runs is None else [max_runs]
        if sweep.method == "grid":
            combinations = itertools.product(*(parameter.grid() for parameter in sweep.parameters))
            names = [parameter.name for parameter in sweep.parameters]
            self._grid = [dict(zip(names, values, strict=True)) for values in combinations]
            bounds.append(len(self._grid))
        if not bounds:
            raise UserError(
                f"max_runs: missing; method {sweep.method} has no end, so set max_runs=N, or run_cap in the file"
            )
        self.max_runs = min(bounds)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._study = optuna.create_study(
            study_name="sweep",
            storage=f"sqlite:///{folder / FILE}",
            direction="maximize" if sweep.maximize else "minimize",
            load_if_exists=True,
        )
        self._interrupted = [record.number for record in self.records() if record.status == "running"]

    def records(self) -> list[Record]:
        """Return all runs so far, by number."""
        return [_record(trial) for trial in self._study.get_trials(deepcopy=False)]

    def next(self) -> Record | None:
        """Return the next run, an interrupted one first; None if no run is left."""
        if self._interrupted:
            number = self._interrupted.pop(0)
        else:
            records = self.records()
            number = len(records)
            if number >= self.max_runs or any(self._is_good_enough(record) for record in records):
                return None
            self._study.ask()
        trial = self._trial(number)
        if "arguments" not in trial.user_attrs:
            seed = int(np.random.SeedSequence(number).generate_state(1)[0])
            self._study.sampler = (TPESampler if self.sweep.method == "bayes" else RandomSampler)(seed=seed)
            values = self._grid[number] if self._grid else {p.name: p.draw(trial) for p in self.sweep.parameters}
            trial.set_user_attr("arguments", self.sweep.arguments(values))
        return self.records()[number]

    def follow(self, number: int, history: Sequence[float]) -> bool:
        """Record the metric of a run at each validation so far, and return whether the run should be stopped."""
        known = len(self.records()[number].history)
        for step, value in enumerate(history[known:], known + 1):
            self._trial(number).report(value, step)
        if self.sweep.hyperband is None or len(history) <= known:
            return False
        everyone = [record.history for record in self.records()]
        return self.sweep.hyperband.stops(everyone[number], everyone, maximize=self.sweep.maximize)

    def end(self, number: int, value: float | None = None, *, error: str | None = None) -> None:
        """Record the end of a run: done with a value, failed with an error, or stopped."""
        if error is not None:
            self._trial(number).set_user_attr("error", error)
        state = TrialState.PRUNED if error is None else TrialState.FAIL
        self._study.tell(number, value, TrialState.COMPLETE if value is not None else state)

    def ranked(self) -> list[Record]:
        """Return all runs: those with a value, best first (equal ones by number), then the rest."""
        return sorted(self.records(), key=lambda record: (record.value is None, self._order(record.value or 0.0)))

    def _order(self, value: float) -> float:
        return -value if self.sweep.maximize else value

    def _is_good_enough(self, record: Record) -> bool:
        target = self.sweep.target
        return target is not None and record.value is not None and self._order(record.value) <= self._order(target)

    def _trial(self, number: int) -> Trial:
        return Trial(self._study, self._study.get_trials(deepcopy=False)[number]._trial_id)


def _record(trial: FrozenTrial) -> Record:
    return Record(
        number=trial.number,
        status=_STATES[trial.state],
        arguments=tuple(trial.user_attrs.get("arguments", ())),
        history=tuple(value for _, value in sorted(trial.intermediate_values.items())),
        value=trial.value if trial.state == TrialState.COMPLETE else None,
        error=trial.user_attrs.get("error"),
    )
