"""Run what is missing, one or two runs at a time, with the time that is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from evidence.checking import check, is_checked
from evidence.plan import Job

from recsys.core.cores import available_cores

# Runs `recsys` with some arguments, appends its output to a file, and returns its exit status.
Launch = Callable[[Sequence[str], Path, int], int]


def run_missing(
    jobs: Sequence[Job], runs: Path, *, data: Path, scorer: Path, num_jobs: int = 1, launch: Launch | None = None
) -> int:
    """Run and check every job that is not finished and checked; return the number of those that failed.

    Args:
        jobs: runs of the plan.
        runs: folder of the run folders.
        data: folder of the data sets.
        scorer: independent program, with functions `split` and `score`.
        num_jobs: number of runs at a time; the cores are shared out among them.
        launch: how a command is started; a process of its own by default, so that its memory is its own.
    """
    launch = launch or start_process
    missing = [job for job in jobs if not is_checked(job.folder(runs))]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are finished and checked", file=sys.stderr, flush=True)
    clock = Clock([seconds_of(job, runs) for job in missing], num_jobs)
    threads = max(1, available_cores() // num_jobs)
    failed: list[str] = []
    # Two checks at a time would split the data of one data set twice.
    checking = threading.Lock()

    def work(place: int) -> None:
        job = missing[place]
        begin = time.monotonic()
        log = runs / "logs" / f"{job.title.replace(', ', '_').replace(' ', '')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        fault = "" if launch(job.command(runs, data), log, threads) == 0 else f"failed, see {log}"
        if not fault:
            with checking:
                fault = check(job, runs, data=data, scorer=scorer, launch=launch, log=log)
        if fault:
            failed.append(job.title)
        clock.finish(place, time.monotonic() - begin)
        print(f"{job.title}: {fault or 'checked'}; {clock.left()}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(num_jobs) as pool:
        list(pool.map(work, range(len(missing))))
    return len(failed)


class Clock:
    """Estimate of the time left: a run takes as long as another seed of its row did, or as the average run."""

    def __init__(self, expected: Sequence[float | None], num_jobs: int) -> None:
        self._expected, self._num_jobs, self._taken = list(expected), num_jobs, {}

    _taken: dict[int, float]

    def finish(self, place: int, seconds: float) -> None:
        self._taken[place] = seconds

    def left(self) -> str:
        average = sum(self._taken.values()) / max(len(self._taken), 1)
        left = [
            average if seconds is None else seconds
            for place, seconds in enumerate(self._expected)
            if place not in self._taken
        ]
        if not left:
            return "nothing left"
        minutes = round(sum(left) / self._num_jobs / 60)
        return f"{len(left)} left, about {minutes // 60} h {minutes % 60:02d} min"


def seconds_of(job: Job, runs: Path) -> float | None:
    """Seconds of a finished run of the same row, if there is one."""
    found = []
    for state in job.folder(runs).parent.glob("seed*/run.json") if job.seed is not None else ():
        content = json.loads(state.read_text())
        if content["status"] == "finished":
            found.append(float(content["seconds"]))
    return sum(found) / len(found) if found else None


def start_process(words: Sequence[str], log: Path, threads: int) -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("a") as output:
        command = [sys.executable, "-m", "recsys.cli", *words]
        return subprocess.run(command, stdout=output, stderr=output, env=environment, check=False).returncode
