"""Process of one run of a sweep, and the files in its folder."""

from __future__ import annotations

import contextlib
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
from recsys.experiments.run_logs import curves_of, read_logs

LOG = "train.log"
# File with the id of a run's process, which locks it for as long as it lives.
_LOCK = "process.lock"
_GRACE_SECONDS = 30.0
_POLL_SECONDS = 0.05


class TrialProcess:
    """A process that trains into a folder.

    It leads a process group, which `stop` ends as a whole, and locks a file of the folder. If the sweep is killed and
    its runs continue, `end_orphan` of the next start finds and ends them. They then continue from their checkpoints.

    Args:
        folder: folder of the run.
        command: command of the run; its output is appended to `train.log`.
        environment: variables added to those of this process.
    """

    def __init__(self, folder: Path, command: Sequence[str], *, environment: Mapping[str, str]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOG).open("ab") as log, (folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._process = subprocess.Popen(
                # The process writes its id itself, because the sweep can be killed before it could write it.
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
        """Exit code of the process; None while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Ask the process and its children to end."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)

    def stop(self) -> None:
        """Ask the process and its children to end, and kill them if they do not."""
        _end_group(self._process.pid, lambda: self.exit_code is not None)


def end_orphan(folder: Path) -> bool:
    """End the process that a killed sweep left training into `folder`, and return whether there was one."""
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
    """Return the values of a metric in the order of validations, from the CSV logs of all starts of a run.

    A start from a checkpoint repeats the steps after it. Each step counts once, with its first value.
    """
    curves = curves_of(read_logs(folder))
    return curves[metric].values if metric in curves else []


def state(folder: Path) -> RunState:
    """Return the content of `run.json`; empty before the run has begun."""
    return read_state(folder) if (folder / STATE).exists() else RunState()


def mark_stopped(folder: Path) -> None:
    """Record in `run.json` that the run will not continue."""
    dataclasses.replace(state(folder), status=RunStatus.STOPPED).write(folder)


def result(folder: Path, metric: str) -> float:
    """Return the metric of a run that has ended.

    Raises:
        UserError: If the run has no result, or not this metric.
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
    """Return the last error line of a failed run, or its last line if it printed no error."""
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
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(pid, kind)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + _GRACE_SECONDS
        while not has_ended() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        if has_ended():
            return
