"""One run of a sweep as a process of its own, and what it leaves in its folder."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import fcntl
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from recsys.core.errors import UserError, nearest
from recsys.experiments.run_folder import DONE, METRICS, STATE, RunState, RunStatus, read_json, read_state

LOG = "train.log"
# Held by the process of a run for as long as it lives, with its id as content.
_LOCK = "process.lock"
_GRACE_SECONDS = 30.0
_POLL_SECONDS = 0.05


class TrialProcess:
    """A process that trains into a folder.

    It leads a process group, which `stop` ends as a whole, and holds a lock on a file of the folder: where the sweep is
    killed and its runs live on, `end_orphan` of the next start finds and ends them. They go on from their checkpoint.

    Args:
        folder: of the run.
        command: what to start; its output is added to `train.log`.
        environment: variables beside those of this process.
    """

    def __init__(self, folder: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOG).open("ab") as log, (folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._process = subprocess.Popen(
                # The process writes its id itself: a sweep can be killed before it knows it.
                ["/bin/sh", "-c", 'echo $$ > "$0"; exec "$@"', str(folder / _LOCK), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,
                pass_fds=[lock.fileno()],
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Ask the process and its children to end."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)

    def stop(self) -> None:
        """Ask the process and its children to end, and see to it that they do."""
        _end_group(self._process.pid, lambda: self.exit_code is not None)


def end_orphan(folder: Path) -> bool:
    """End the process that a killed sweep left training into `folder`; whether there was one."""
    if not (folder / _LOCK).exists():
        return False
    with (folder / _LOCK).open() as lock:
        while not _is_free(lock):
            lock.seek(0)
            if content := lock.read():
                _end_group(int(content), lambda: _is_free(lock))
                return True
            time.sleep(_POLL_SECONDS)
    return False


def history(folder: Path, metric: str) -> list[float]:
    """Values of a metric in the order of validations, from the CSV logs of all starts of a run.

    A start that goes on from a checkpoint repeats what came after it: each step counts once, as it was first logged.
    """
    values: list[float] = []
    last = -1
    logs = (folder / "logs").glob("*/metrics.csv")
    for file in sorted(logs, key=lambda path: int(path.parent.name)):
        with file.open(newline="") as rows:
            for row in csv.DictReader(rows):
                try:
                    step, value = int(row["step"]), float(row[metric] or "nan")
                except (KeyError, TypeError, ValueError):
                    # Not logged yet, or a line that is just being written.
                    continue
                if step > last and math.isfinite(value):
                    values.append(value)
                    last = step
    return values


def state(folder: Path) -> RunState:
    """Return the content of `run.json`; empty before the run has begun."""
    return read_state(folder) if (folder / STATE).exists() else RunState()


def mark_stopped(folder: Path) -> None:
    """Record in `run.json` that the run will not continue."""
    dataclasses.replace(state(folder), status=RunStatus.STOPPED).write(folder)


def result(folder: Path, metric: str) -> float:
    """The metric of a run that has ended.

    Raises:
        UserError: the run has not got to a result, or not to this one.
    """
    status = state(folder).status
    if status not in DONE:
        raise UserError(f"run.json: status is '{status}', expected {' or '.join(DONE)}")
    metrics = read_json(folder / METRICS)
    if metric not in metrics:
        raise UserError(f"metric: the run has no '{metric}'{nearest(metric, metrics)}")
    if not math.isfinite(metrics[metric]):
        raise UserError(f"{metric}: found {metrics[metric]}, expected a finite number")
    return float(metrics[metric])


def last_error(folder: Path) -> str:
    """What a failed run said last: our own error line, or the last line there is."""
    lines = [line for line in (folder / LOG).read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["no output"])[-1]


def _is_free(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(lock, fcntl.LOCK_UN)
    return True


def _end_group(pid: int, has_ended: Callable[[], bool]) -> None:
    for wish in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(pid, wish)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + _GRACE_SECONDS
        while not has_ended() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        if has_ended():
            return
