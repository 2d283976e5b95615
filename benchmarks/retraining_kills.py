"""Measure if retraining cycles survive SIGKILL at any moment.

    python benchmarks/retraining_kills.py [--kills 200] [--most 4] [--seed 0] [--folder DIR]

Days of a small simulated world arrive one by one. Each cycle is killed at random times, up to `--most` times, and
started again until it ends. After every kill the served release must be complete, and there may be at most one new
release. At the end of a cycle there must be exactly one (none if the gates stopped it), and one line in the history.
The table shows the steps at which kills happened. Exit code 1 if a check fails. A kill takes about ten seconds on an
idle core.

Each start is a fork of a process that has imported everything, so that kills hit the cycle and not its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

# The forks inherit these imports.
import recsys.experiments.run_summary
import recsys.operations.cycle.cycle  # noqa: F401
from recsys.core.errors import UserError
from recsys.data.simulation.synthetic import WorldSettings, generate
from recsys.release.store import ReleaseStore
from recsys.release.verification import verify_release

REPOSITORY = Path(__file__).parents[1]
FIRST_DAYS, EVENTS_PER_DAY, DAY = 15, 100, 86_400
TRAINING = (
    "logger=csv",
    "model.dim=8",
    "user_tower=mean",
    "optimizer.lr=0.01",
    "trainer.max_epochs=4",
    "batch_size=16",
    "+trainer.enable_progress_bar=false",
    "+data.features.items.title.ignore=true",
    "callbacks.last.every_n_train_steps=5",
    "callbacks.last.train_time_interval=null",
)
# These gates need more events than such small days have.
TOO_SMALL = "latency volume unseen nulls repeats items labels popularity predictable record"
GATES = ("gates.absolute.min_ratio=0.5", *(f"~gates.{name}" for name in TOO_SMALL.split()))


@dataclass
class KillReport:
    """Result of the kills.

    Attributes:
        steps: number of kills at each step.
        wrong: failed checks.
        cycles: number of cycles of each outcome.
    """

    steps: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    cycles: Counter[str] = field(default_factory=Counter)

    @property
    def kills(self) -> int:
        return self.steps.total()


class ArrivingWorld:
    """A simulated world whose days arrive one by one, and its retraining cycles."""

    def __init__(self, base: Path, days: int) -> None:
        self.base, self.data = base, base / "data"
        settings = WorldSettings(
            num_users=100, num_items=60, num_events=EVENTS_PER_DAY * days, num_categories=3, topics_per_category=2,
            days=days, vector_width=4,
        )  # fmt: skip
        generate(base / "world", settings)
        self._events = pq.read_table(base / "world/interactions.parquet", use_threads=False)
        self._start = settings.start_seconds
        (self.data / "interactions.parquet").mkdir(parents=True)
        for table in ("items", "users"):
            shutil.copyfile(base / f"world/{table}.parquet", self.data / f"{table}.parquet")
        self.store, self.folder = ReleaseStore(base / "releases"), base / "retraining/two_tower"

    def arrive(self, begin: int, end: int) -> None:
        time_of = self._events["timestamp"]
        low, high = (pa.scalar(self._start + DAY * day) for day in (begin, end))
        shard = self._events.filter(pc.and_(pc.greater_equal(time_of, low), pc.less(time_of, high)))
        aside = self.data / f"day-{begin:03d}.part"
        pq.write_table(shard, aside)
        os.replace(aside, self.data / f"interactions.parquet/day-{begin:03d}.parquet")

    def start(self, log: Path) -> int:
        """Start a cycle and return its process id."""
        training = ",".join(f"'{word}'" for word in (f"data.cache={self.base / 'cache'}", *TRAINING))
        command = ["retrain.py", f"data.root={self.data}", f"store={self.store.root}", f"train=[{training}]", *GATES]
        child = os.fork()
        if child:
            return child
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = 1
        try:
            os.chdir(REPOSITORY)
            sys.argv = [*command, f"folder={self.folder.parent}"]
            runpy.run_path(str(REPOSITORY / "retrain.py"), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush()
            os._exit(code)

    def step(self) -> str:
        state = self.folder / "state.json"
        current = json.loads(state.read_text())["current"] if state.exists() else None
        return "between cycles" if current is None else str(current["step"])

    def outcomes(self) -> list[str]:
        lines = (self.folder / "cycles.jsonl").read_text().splitlines()
        return [json.loads(line)["outcome"] for line in lines]

    def problems(self, before: list[str]) -> list[str]:
        """Return everything that is wrong with the store."""
        found = []
        versions = self.store.versions()
        if len(versions) > len(before) + 1 or not {*before} <= {*versions}:
            found.append(f"{len(versions)} releases, expected {len(before)} or one more")
        for name in (*versions, "production"):
            try:
                verify_release(self.store.root / self.store.resolve(name))
            except UserError as error:
                found.append(f"{name}: {error}")
        return found


def wait(child: int, seconds: float) -> int | None:
    """Wait for a process and return its exit code; None if it had to be killed after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code == -signal.SIGKILL else code


def run(world: ArrivingWorld, kills: int, most: int, rng: random.Random, console: Console) -> KillReport:
    found, log = KillReport(), world.base / "log"
    world.arrive(0, FIRST_DAYS)
    begin = time.monotonic()
    if (code := wait(world.start(log), 3600)) != 0:
        found.wrong.append(f"the first cycle ended with {code}: {log}")
        return found
    took, day = time.monotonic() - begin, FIRST_DAYS
    while found.kills < kills:
        world.arrive(day, day + 1)
        day += 1
        before, told = world.store.versions(), len(world.outcomes())
        for number in range(most + 1):
            last = number == most or found.kills >= kills
            code = wait(world.start(log), 3600 if last else rng.uniform(0, took))
            if code is not None:
                break
            found.steps[world.step()] += 1
            found.wrong += [f"kill {found.kills}: {problem}" for problem in world.problems(before)]
        outcomes = world.outcomes()[told:]
        if len(outcomes) != 1 or code not in (0, 3):
            found.wrong.append(f"day {day}: exit code {code}, in the history {outcomes}: {log}")
            return found
        found.cycles[outcomes[0]] += 1
        new = len(world.store.versions()) - len(before)
        if new != (outcomes[0] == "kept"):
            found.wrong.append(f"day {day}: {new} releases more after a cycle that was {outcomes[0]}")
        found.wrong += [f"day {day}: {problem}" for problem in world.problems(before)]
        console.print(f"day {day}: {outcomes[0]}, {found.kills} kills so far")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--most", type=int, default=4, help="kills of one cycle (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="folder of all files; must not exist")
    asked = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        base = asked.folder or Path(scratch) / "kills"
        base.mkdir(parents=True)
        # Some cycles end before their first kill, so there are more days than cycles with kills.
        world = ArrivingWorld(base, FIRST_DAYS + asked.kills + 1)
        found = run(world, asked.kills, asked.most, random.Random(asked.seed), console)
        for problem in found.wrong:
            console.print(f"WRONG: {problem}", soft_wrap=True)
    table = Table("killed at step", "kills")
    for step, count in found.steps.most_common():
        table.add_row(step, str(count))
    console.print(table)
    cycles = ", ".join(f"{count} {outcome}" for outcome, count in found.cycles.items())
    console.print(f"{found.kills} kills, {found.cycles.total()} cycles ({cycles}), {len(found.wrong)} things wrong")
    raise SystemExit(bool(found.wrong))


if __name__ == "__main__":
    main()
