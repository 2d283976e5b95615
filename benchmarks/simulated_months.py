"""Measure day by day over months what retraining is worth, and if the gates work.

    python benchmarks/simulated_months.py --folder DIR [--picture docs/simulated_months.svg]

Simulated pins with drifting interests, new items and users, trends and incidents arrive day by day. At the end of each
day, the served release of each policy ranks the full corpus for every user of that day. Then each policy (never,
weekly, daily; warm, cold; with and without gates) retrains if it is due, by a cycle of `recsys retrain` in this
process. The benchmark prints a table and writes `DIR/months.json` and the picture. If it is killed, the same command
continues after the last finished step. With `--capacity` and `--window-days` it compares whole id tables with tables of
so many rows instead (`item_tower.admission`), without incidents. Bars: 90 days and 200,000 events in 15 minutes
on two cores; daily retraining is significantly better than none. Exit code 1 if the second bar is missed.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "harms"))
sys.path.insert(0, str(Path(__file__).parent / "months"))

import torch
from arriving import Days, Incident
from beginning import Beginnings
from of_data import doubled_day, outage, shuffled_items
from policies import FIRST, POLICIES, Loop, Policy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from telling import DayRecord, Months
from worth import requests_since, worth

from recsys.data.simulation.synthetic import WorldSettings
from recsys.experiments.assembly import open_data
from recsys.operations.gates.judged_requests import JudgedRequests

FIRST_DAY = 29
INCIDENTS = (
    Incident("export ran twice", 40, 42, doubled_day),
    Incident("9 hours lost", 47, 49, outage),
    Incident("items mixed up", 59, 63, shuffled_items, days=14),
    Incident("nobody could come", 68, 69, outage, happened=True),
    Incident("learning rate x 100", 75, 77, training=("optimizer.lr=0.5", "optimizer.warmup_steps=0")),
)
# Days on whose data a cold and a warm training are compared.
COMPARED = (44, 59, 84)


class Simulation:
    """Days of a world, and policies that retrain on them.

    Args:
        folder: folder of all files; finished steps in it are used again.
        settings: settings of the world.
        first_day: day at whose end the first model of all policies is trained.
        incidents: incidents of the world.
        policies: retraining policies.
        compared: days on whose data a cold and a warm training are compared.
    """

    def __init__(
        self,
        folder: Path,
        settings: WorldSettings,
        *,
        first_day: int = FIRST_DAY,
        incidents: tuple[Incident, ...] = INCIDENTS,
        policies: tuple[Policy, ...] = POLICIES,
        compared: tuple[int, ...] = COMPARED,
    ) -> None:
        self.folder, self.settings, self.first_day = folder.absolute(), settings, first_day
        (self.folder / "days").mkdir(parents=True, exist_ok=True)
        self.days = Days(self.folder, settings, incidents)
        self.first = Loop(self.folder, FIRST, days=self.days)
        self.loops = [Loop(self.folder, policy, days=self.days) for policy in policies]
        chosen = tuple(day for day in compared if first_day < day < settings.days)
        self.beginnings = Beginnings(self.folder / "beginnings", self.first, days=self.days, chosen=chosen)

    def run(self, workers: int = 1, console: Console | None = None) -> Months:
        """Simulate all days that are not finished.

        Args:
            workers: processes that retrain, each on one thread; 1 to retrain in this process.
            console: terminal for the progress.
        """
        bars = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        told = []
        with ExitStack() as stack:
            pool = None
            if workers > 1:
                spawned = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin_worker)
                pool = stack.enter_context(spawned)
            progress = stack.enter_context(Progress(*bars, console=console or Console(stderr=True)))
            task = progress.add_task("", total=self.settings.days - self.first_day)
            for day in range(self.first_day, self.settings.days):
                progress.update(task, description=f"day {day + 1}")
                told.append(self._live(day, pool))
                progress.advance(task)
        retrained = {loop.policy.name: loop.retrained() for loop in self.loops}
        return Months(self.days.num_events, told, retrained, self.days.incidents, self.beginnings.measured())

    def _live(self, day: int, pool: ProcessPoolExecutor | None) -> DayRecord:
        """Simulate one day, or the rest of it."""
        file = self.folder / f"days/{day:03}.json"
        told = DayRecord(**json.loads(file.read_text())) if file.exists() else DayRecord(day)
        if told.is_over:
            return told
        begin = time.monotonic()
        self.days.pass_by(day)
        if day == self.first_day:
            self.first.retrain(day)
            for loop in self.loops:
                loop.begin_as(self.first)
        elif not told.recall:
            # This prepares the data once for all policies.
            asked = _asked(self.first, self.days, day)
            told.users = len(asked.requests.user_idx)
            answered = self._of_each(_answer, [loop.policy for loop in self.loops], day, pool)
            told.recall = {loop.policy.name: found for loop, found in zip(self.loops, answered, strict=True)}
            # Retraining changes the served releases, so the answers are saved before it.
            _write(file, told)
        due = [loop.policy for loop in self.loops if loop.policy.is_due(day, self.first_day)]
        self._of_each(_retrain, due, day, pool)
        told.seconds, begin = told.seconds + time.monotonic() - begin, time.monotonic()
        self.beginnings.at_the_end_of(day)
        told.comparing, told.is_over = time.monotonic() - begin, True
        _write(file, told)
        return told

    def _of_each(
        self, work: Callable[..., Any], policies: Sequence[Policy], day: int, pool: ProcessPoolExecutor | None
    ) -> list[Any]:
        """Return the result of the work for each policy, in this process or in those of the pool."""
        of_one = functools.partial(work, self.folder, self.settings, self.days.incidents, day)
        return list(map(of_one, policies) if pool is None else pool.map(of_one, policies))


def _answer(
    folder: Path, settings: WorldSettings, incidents: tuple[Incident, ...], day: int, policy: Policy
) -> dict[str, float]:
    days = Days(folder, settings, incidents)
    loop = Loop(folder, policy, days=days)
    return worth(loop.served, _asked(loop, days, day))


def _retrain(folder: Path, settings: WorldSettings, incidents: tuple[Incident, ...], day: int, policy: Policy) -> None:
    Loop(folder, policy, days=Days(folder, settings, incidents)).retrain(day)


def _asked(loop: Loop, days: Days, day: int) -> JudgedRequests:
    return requests_since(open_data(loop.training(days.happened, day)), days.second(day))


def _begin_worker() -> None:
    _quiet()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End with the benchmark, because a worker that outlives it would disturb the next start."""
    parent = parent_process()
    assert parent is not None, "another process starts a worker"
    parent.join()
    os._exit(1)


def _quiet() -> None:
    logging.getLogger("recsys").setLevel(logging.WARNING)
    torch.set_num_threads(1)


def _write(file: Path, told: DayRecord) -> None:
    aside = file.with_suffix(".part")
    aside.write_text(json.dumps(asdict(told)) + "\n")
    os.replace(aside, file)


def _capacities(asked: argparse.Namespace) -> tuple[Policy, ...]:
    """Return policies that differ by the rows of their id tables."""
    policies = [Policy("never", None), Policy("whole table", asked.every, gated=False)]
    key = "item_tower.admission"
    for rows in asked.capacity:
        words = f"{key}.capacity={rows}", f"{key}.window_days={asked.window_days or 'null'}"
        policies.append(Policy(f"{rows} rows", asked.every, gated=False, training=words))
    return tuple(policies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder of all files; finished steps in it are used again")
    parser.add_argument("--picture", type=Path, help="SVG file (default: FOLDER/months.svg)")
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--items", type=int, default=3000)
    parser.add_argument("--events", type=int, default=202_000)
    parser.add_argument(
        "--first-day", type=int, default=FIRST_DAY + 1, help="day, from 1, at whose end the first model is trained"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that retrain (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--capacity", type=int, nargs="+", help="rows of id tables that are compared with whole ones")
    parser.add_argument("--window-days", type=float, help="days without events after which an id loses its row")
    parser.add_argument("--every", type=int, default=7, help="days between two trainings, with --capacity")
    asked = parser.parse_args()
    _quiet()
    settings = WorldSettings(
        num_users=asked.users, num_items=asked.items, num_events=asked.events, days=asked.days, seed=asked.seed
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        console = Console()
        compared: dict[str, Any] = {}
        if asked.capacity:
            compared = {"incidents": (), "policies": _capacities(asked), "compared": ()}
        months = Simulation(folder, settings, first_day=asked.first_day - 1, **compared).run(asked.workers, console)
        months.print(console)
        (folder / "months.json").write_text(json.dumps(months.to_json(), indent=1) + "\n")
        months.draw(asked.picture or folder / "months.svg")
    if not asked.capacity and months.gain("daily, warm", "never")[1] <= 0:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
