"""Runner of a sweep on this machine: several processes at a time, with early stopping. It continues after a kill."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from recsys.core.cores import available_cores
from recsys.core.errors import UserError
from recsys.core.io import atomic_write
from recsys.experiments.compose import check_overrides
from recsys.experiments.conf_files import CONF
from recsys.experiments.run_folder import DONE
from recsys.experiments.sweep import trial
from recsys.experiments.sweep.file import Sweep, read_sweep
from recsys.experiments.sweep.study import Record, SweepStudy
from recsys.experiments.sweep.trial import TrialProcess

FILE = "sweep.yaml"
# Program of a sweep file that trains with this package; in a checkout it is a file.
TRAIN = "train.py"
_POLL_SECONDS = 0.2


def run_sweep(sweep: Sweep, folder: Path, *, max_runs: int | None, workers: int, console: Console) -> SweepStudy:
    """Run a sweep until no run is left; the same call continues where an earlier one was killed.

    A run trains into `folder/NUMBER` with `test=false` first on its command line. Only the winner is tested, when
    `recsys index sweep=` promotes it, because the best test metric of many runs is partly chance. An interrupt ends the
    processes and is raised again.

    Args:
        sweep: sweep to run.
        folder: folder of the sweep; its `sweep.yaml` is also a sweep file for W&B.
        max_runs: bound on the number of runs; None for the `run_cap` of the file.
        workers: number of runs at a time.
        console: console for progress and results.

    Raises:
        UserError: If the folder holds another sweep or is in use, the sweep does not compose, or it has no end.
    """
    check_composition(sweep)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "sweep.lock", timeout=0):
            _claim(folder, sweep)
            study = SweepStudy(folder, sweep, max_runs=sweep.run_cap if max_runs is None else max_runs)
            _Runner(study, folder, workers=workers, console=console).run()
            return study
    except Timeout as error:
        raise UserError(f"{folder}: another process runs this sweep") from error


def report(study: SweepStudy, folder: Path, *, console: Console) -> None:
    """Print the runs, best first, with the commands that train and promote the winner."""
    sweep, ranked = study.sweep, study.ranked()
    shared = set.intersection(*(set(record.arguments) for record in ranked)) if len(ranked) > 1 else set()
    table = Table()
    for title in ("run", "status", "arguments"):
        table.add_column(title, overflow="fold")
    for title in (sweep.metric, "seconds"):
        table.add_column(title, justify="right")
    for record in ranked:
        arguments = " ".join(argument for argument in record.arguments if argument not in shared)
        table.add_row(
            str(record.number),
            record.status,
            escape(f"{arguments}\n{record.error}" if record.error else arguments),
            "" if record.value is None else f"{record.value:.4f}",
            f"{trial.state(folder / str(record.number)).seconds:.0f}",
        )
    console.print(table)
    if ranked and ranked[0].value is not None:
        words = sweep.command_line(ranked[0].arguments)
        words = [word for word in words[words.index(sweep.program) + 1 :] if not word.startswith("test=")]
        program = ["recsys", "train"] if _is_train(sweep) else ["python", sweep.program]
        for line in (
            f"best:    {folder / str(ranked[0].number)}",
            f"train:   {shlex.join([*program, *words])}",
            f"promote: {shlex.join(['recsys', 'index', f'sweep={folder}', f'metric={sweep.metric}'])}",
        ):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Runner:
    def __init__(self, study: SweepStudy, folder: Path, *, workers: int, console: Console) -> None:
        self.study, self.sweep, self.folder, self.workers = study, study.sweep, folder, workers
        self.console = console
        self.running: dict[int, TrialProcess] = {}
        cores = max(1, available_cores() // workers)
        usual = {"OMP_NUM_THREADS": str(cores), "WANDB_RUN_GROUP": str(self.sweep.content.get("name", folder.name))}
        self.environment = {name: value for name, value in usual.items() if name not in os.environ}

    def run(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
            total = progress.add_task(str(self.folder), total=self.study.max_runs)
            try:
                while True:
                    while len(self.running) < self.workers and (record := self.study.next()) is not None:
                        self._start(record)
                    if not self.running:
                        return
                    time.sleep(_POLL_SECONDS)
                    for number in list(self.running):
                        self._follow(number)
                    records = self.study.records()
                    now = "  ".join(
                        f"{r.number}: {r.history[-1]:.4f}" for r in records if r.number in self.running and r.history
                    )
                    over = sum(record.status != "running" for record in records)
                    progress.update(total, completed=over, description=f"{self.folder}  {now}")
            finally:
                # All processes are asked to stop before the first wait, so that they end at the same time.
                for process in self.running.values():
                    process.ask_to_stop()
                for process in self.running.values():
                    process.stop()

    def _start(self, record: Record) -> None:
        place = self.folder / str(record.number)
        trial.end_orphan(place)
        # The run may have ended before the sweep was killed.
        if trial.state(place).status in DONE:
            self._end(record.number, exit_code=0)
            return
        quoted = str(place).replace("'", "\\'")
        command = _command(self.sweep, ["test=false", *record.arguments, f"hydra.run.dir='{quoted}'"])
        self.running[record.number] = TrialProcess(place, command, environment=self.environment)

    def _follow(self, number: int) -> None:
        """Record the progress of a run, and end it if hyperband decides so."""
        process, place = self.running[number], self.folder / str(number)
        exit_code = process.exit_code
        should_stop = self.study.follow(number, trial.history(place, self.sweep.metric))
        if exit_code is not None:
            self._end(number, exit_code)
        # A run that has selected its checkpoint ends by itself.
        elif should_stop and not trial.state(place).is_selected:
            process.stop()
            trial.mark_stopped(place)
            self._end(number, None)

    def _end(self, number: int, exit_code: int | None) -> None:
        """Record and print the result of a run; an exit code of None stands for a stopped run."""
        self.running.pop(number, None)
        place, value, error = self.folder / str(number), None, None
        if exit_code == 0:
            try:
                value = trial.result(place, self.sweep.metric)
            except UserError as problem:
                error = str(problem)
        elif exit_code is not None:
            error = f"killed by signal {-exit_code}" if exit_code < 0 else trial.last_error(place)
        self.study.end(number, value, error=error)
        record = self.study.records()[number]
        what = error or (
            f"{self.sweep.metric} {value:.4f}" if value is not None else f"after {len(record.history)} validations"
        )
        line = f"run {number} {record.status}: {what}  ({' '.join(record.arguments)})"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _command(sweep: Sweep, arguments: list[str]) -> list[str]:
    """Return the command line of one run; the program `train.py` is replaced by the installed command."""
    words = sweep.command_line(arguments)
    if not _is_train(sweep):
        return words
    at = words.index(sweep.program)
    before = words[:at] if words[at - 1] == sys.executable else [*words[:at], sys.executable]
    return [*before, "-m", "recsys.cli", "train", *words[at + 1 :]]


def _is_train(sweep: Sweep) -> bool:
    program = Path(sweep.program)
    return program.resolve() == CONF.parent / TRAIN or (sweep.program == TRAIN and not program.exists())


def check_composition(sweep: Sweep) -> None:
    """Compose the configuration of every choice once, so that a wrong key is refused before the first run."""
    if not _is_train(sweep):
        if not Path(sweep.program).is_file():
            raise UserError(f"program: {sweep.program} is not a file; start the sweep in its folder")
        return
    usual = {p.name: p.choices[0] if p.choices else p.quantile(0.5) for p in sweep.parameters}
    cases = [usual] + [usual | {p.name: choice} for p in sweep.parameters for choice in p.choices[1:]]
    for values in cases:
        words = sweep.command_line(["test=false", *sweep.arguments(values)])
        check_overrides("train", words[words.index(sweep.program) + 1 :])


def _claim(folder: Path, sweep: Sweep) -> None:
    """Write `sweep.yaml`, or check that the existing one is of the same sweep; the bound on runs may differ."""
    file = folder / FILE
    if not file.exists():
        atomic_write(file, yaml.safe_dump(dict(sweep.content), sort_keys=False))
    found = read_sweep(file).content
    for key in sorted({*found, *sweep.content} - {"run_cap", "description"}):
        if found.get(key) != sweep.content.get(key):
            raise UserError(
                f"{file}: this folder holds a sweep with {key}={found.get(key)}, but {key}={sweep.content.get(key)} is "
                "requested; choose another dir="
            )
