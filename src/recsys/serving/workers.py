"""Runs several processes that share one port, and restarts failed ones. Imports no torch."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType

from prometheus_client.multiprocess import mark_process_dead

from recsys.core.cores import available_cores
from recsys.core.errors import UserError
from recsys.serving.observability.metrics import SHARED_FOLDER, WORKER_NUMBER

log = logging.getLogger("recsys")

# Exit code of a process that cannot start and that a restart would not help.
CANNOT_START = 3
# Seconds between two checks of the processes, and from the end of a process to its restart.
CHECK_SECONDS = 0.5
RESTART_SECONDS = 1.0
# OpenBLAS (numpy) and OpenMP (faiss) read these when they are loaded.
THREAD_LIMITS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


def bind(host: str, port: int, *, shared: bool) -> socket.socket:
    """Return a socket that is bound to an address, or raise `UserError`.

    Other processes of this user can bind a shared address too; the kernel spreads connections among them.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        opened.bind((host, port))
    except OSError as error:
        opened.close()
        raise UserError(f"port: cannot listen at {host}:{port} ({error.strerror})") from error
    opened.set_inheritable(True)
    return opened


@contextlib.contextmanager
def worker_environment(number: int, *, count: int, metrics: Path) -> Iterator[None]:
    """Set the environment of a worker that is started in this context: number of threads, and folder of metrics.

    Without a limit each process uses a thread for every core, and the threads of their matrix products compete.
    """
    threads = str(max(1, available_cores() // count))
    added = {name: threads for name in THREAD_LIMITS if name not in os.environ}
    added |= {SHARED_FOLDER: str(metrics), WORKER_NUMBER: str(number)}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def supervise(work: Callable[[], None], count: int) -> None:
    """Run `work` in `count` processes until SIGTERM or SIGINT, then end the processes and wait for them.

    `work` can be pickled. It exits with `CANNOT_START` if a restart would not help, which raises `UserError` here.
    """
    context = multiprocessing.get_context("spawn")
    ending: int | None = None

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        nonlocal ending
        ending = number
        _terminate(processes)

    def start(number: int) -> SpawnProcess:
        process = context.Process(target=work)
        # Gauges of a process that ended are not those of its successor.
        mark_process_dead(number, str(metrics))
        with worker_environment(number, count=count, metrics=metrics):
            process.start()
        return process

    metrics = Path(tempfile.mkdtemp(prefix="recsys-metrics-"))
    processes: list[SpawnProcess] = []
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        processes.extend(map(start, range(count)))
        while ending is None:
            wait([process.sentinel for process in processes], CHECK_SECONDS)
            for place, process in enumerate(processes):
                if ending is not None or process.exitcode is None:
                    continue
                if process.exitcode == CANNOT_START:
                    raise UserError("serve: a process cannot start; its message is above")
                log.error("process %s ended with %s; starting another", process.pid, process.exitcode)
                time.sleep(RESTART_SECONDS)
                processes[place] = start(place)
    finally:
        _terminate(processes)
        for process in processes:
            process.join()
        shutil.rmtree(metrics, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)
    if ending is not None:
        # A single process would end by its signal, so this one does too.
        signal.raise_signal(ending)


def _terminate(processes: Sequence[SpawnProcess]) -> None:
    for process in processes:
        if process.exitcode is None:
            process.terminate()
