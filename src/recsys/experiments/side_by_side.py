"""Training of several runs at the same time, each in a process of its own.

Small models use a second core badly: its share of a training step is too short. Two trainings that have a core each end
sooner than the same two in turn on both cores. Imports no torch, so that new processes load it with their own threads.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

from omegaconf import DictConfig

from recsys.core.cores import available_cores
from recsys.core.errors import UserError
from recsys.core.trust import trust, trusted
from recsys.experiments.run_folder import RunFolder

log = logging.getLogger("recsys")

# Training events from which training takes much longer than starting a process.
_LEAST_EVENTS = 50_000
_GRACE_SECONDS = 30.0


class Step(Protocol):
    """A part of the training of a run, such as `train.select`. Its module must be importable by another process."""

    def __call__(self, config: DictConfig, path: Path, /) -> RunFolder:
        """Train the run in the folder `path`."""


def choose_jobs(configs: Mapping[str, DictConfig], *, num_events: int) -> int:
    """Return how many of the runs are trained at a time, as `variant_jobs` says.

    Args:
        configs: configurations of the runs.
        num_events: number of training events.

    Raises:
        UserError: If `variant_jobs` is not `auto` or a number from 1 on.
    """
    config = next(iter(configs.values()))
    jobs = config.get("variant_jobs", 1)
    if jobs != "auto" and (not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1):
        raise UserError(f"variant_jobs: found {jobs!r}, expected auto or a number from 1 on")
    if not all(_is_alone(each.trainer) for each in configs.values()):
        return 1
    if jobs == "auto":
        jobs = available_cores() if num_events >= _LEAST_EVENTS else 1
    return min(int(jobs), len(configs))


def _is_alone(trainer: DictConfig) -> bool:
    from recsys.experiments.processes import launched

    on_cpu = trainer.get("accelerator") == "cpu" and trainer.get("devices") in (1, "auto")
    return on_cpu and launched(trainer) is None


def train_all(
    step: Step, configs: Mapping[str, DictConfig], folders: Path, *, what: str, jobs: int
) -> dict[str, RunFolder]:
    """Take a step of the training of each run, several at a time, and return the runs in the given order.

    If one fails or this process is interrupted, the others are stopped. A killed call continues where it was.

    Args:
        step: part of the training.
        configs: configurations of the runs by name. What training chooses for them is written into them.
        folders: folder with a folder of each run.
        what: beginning of a line for each run, such as `training variant`.
        jobs: number of runs at a time. With 1 all are trained by this process.

    Raises:
        UserError: If a run is refused, or a process ends without an answer.
    """
    runs = {}
    if jobs == 1:
        for number, (name, config) in enumerate(configs.items(), 1):
            log.info("%s %s (%d of %d)", what, name, number, len(configs))
            runs[name] = step(config, folders / name)
        return runs
    import torch

    threads = max(1, torch.get_num_threads() // jobs)
    waiting = list(enumerate(configs.items(), 1))
    running: dict[Connection, BaseProcess] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, (name, config) = waiting.pop(0)
                log.info("%s %s (%d of %d)", what, name, number, len(configs))
                running.update([_start(step, config, folders / name, threads=threads)])
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                _check(connection, running[connection])
                name = running.pop(connection).name
                runs[name] = RunFolder(folders / name, configs[name])
    finally:
        _stop(list(running.values()))
    return {name: runs[name] for name in configs}


def _start(step: Step, config: DictConfig, path: Path, *, threads: int) -> tuple[Connection, BaseProcess]:
    # A forked process could not use the threads of torch.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(step, config, path, trusted(), theirs), name=path.name)
    with _without_script(), _variable("OMP_NUM_THREADS", str(threads)):
        process.start()
    # With our copy open, the end of the process would not end the connection.
    theirs.close()
    return ours, process


@contextmanager
def _without_script() -> Iterator[None]:
    """Hide the user's script from new processes, which would run it again if it is not guarded by `__main__`."""
    main = sys.modules["__main__"]
    usual: dict[str, Any] = {name: main.__dict__[name] for name in ("__file__", "__spec__") if name in main.__dict__}
    main.__dict__.update(dict.fromkeys(usual))
    try:
        yield
    finally:
        main.__dict__.update(usual)


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set a variable of new processes. Libraries read this one when they are loaded."""
    usual = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if usual is not None:
            os.environ[name] = usual


def _check(connection: Connection, process: BaseProcess) -> None:
    try:
        error = connection.recv()
    except EOFError:
        process.join()
        reason = "was killed, perhaps for lack of memory" if process.exitcode == -signal.SIGKILL else "ended early"
        raise UserError(
            f"variant {process.name}: its process {reason} (exit code {process.exitcode}); the same command continues, "
            "and with variant_jobs=1 it trains one variant at a time"
        ) from None
    process.join()
    if isinstance(error, UserError):
        raise type(error)(f"variant {process.name}: {error}")
    if error is not None:
        raise RuntimeError(f"variant {process.name}:\n{error}")


def _stop(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_GRACE_SECONDS)
        process.kill()
        process.join()


def _work(step: Step, config: DictConfig, path: Path, packages: list[str], connection: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    trust(packages)
    sys.stdout = sys.stderr = cast(TextIO, _Named(sys.stdout, path.name))
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("recsys").setLevel(logging.INFO)
    logging.getLogger("faiss").setLevel(logging.WARNING)
    try:
        step(config, path)
        error: Any = None
    except UserError as found:
        error = found
    except BaseException:
        error = traceback.format_exc()
    connection.send(error)


def _end_with_parent() -> None:
    """End this process when the parent was killed: the run folder would stay locked."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


class _Named:
    """Stream that begins each line with a name. It is no terminal, so that progress is written as lines."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self.stream, self.name, self.line = stream, name, ""

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            self.stream.write(f"{self.name}: {line}\n")
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def encoding(self) -> str:
        return self.stream.encoding
