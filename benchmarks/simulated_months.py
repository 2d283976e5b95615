"""Months in minutes: what is retraining worth, day by day, and do the gates hold?

    python benchmarks/simulated_months.py --folder DIR [--picture docs/simulated_months.svg]

Simulated pins with drifting interests, new items and users, trends and incidents pass day by day. At the end of each
day what was served answers everyone who came that day, from the full corpus; then each policy (never, weekly, daily;
warm, cold; with and without gates) retrains if it is due, by a cycle of `retrain.py` in this process. Prints a table,
and writes `DIR/months.json` and the picture. Killed and started again, it goes on behind the last finished step.
Bars: 90 days and 200,000 events in 15 minutes on two cores; daily retraining above none, by more than chance.
Exit code 1 where the second is missed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / name) for name in ("months", "harms")]

from arriving import Days, Incident
from of_data import doubled_day, outage, shuffled_items
from policies import FIRST, POLICIES, Loop, Policy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from telling import Months, Told
from worth import requests_since, worth

from recsys.build import open_data
from recsys.data.synthetic import WorldSettings

FIRST_DAY = 29
INCIDENTS = (
    Incident("export ran twice", 40, 42, doubled_day),
    Incident("9 hours lost", 47, 49, outage),
    Incident("items mixed up", 59, 63, shuffled_items, days=14),
    Incident("nobody could come", 68, 69, outage, happened=True, accepted=("volume", "gaps")),
    Incident("learning rate x 100", 75, 77, training=("optimizer.lr=0.5", "optimizer.warmup_steps=0")),
)


def simulate(
    folder: Path,
    settings: WorldSettings,
    first_day: int = FIRST_DAY,
    incidents: Sequence[Incident] = INCIDENTS,
    policies: Sequence[Policy] = POLICIES,
    console: Console | None = None,
) -> Months:
    """Let the days pass, or those that are left.

    Args:
        folder: of everything that is made, and found again.
        settings: of the world.
        first_day: at whose end the first model is trained, for all policies.
        incidents: that happen.
        policies: by which models are retrained.
        console: shows the progress.
    """
    folder = folder.absolute()
    (folder / "days").mkdir(parents=True, exist_ok=True)
    days = Days(folder, settings, incidents)
    first = Loop(folder, FIRST, days)
    loops = [Loop(folder, policy, days) for policy in policies]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console or Console(stderr=True)) as progress:
        task = progress.add_task("days", total=settings.days - first_day)
        for day in range(first_day, settings.days):
            file = folder / f"days/{day:03}.json"
            told = Told(**json.loads(file.read_text())) if file.exists() else Told(day)
            if not told.is_over:
                begin = time.monotonic()
                days.pass_by(day)
                if day == first_day:
                    first.retrain(day)
                    for loop in loops:
                        loop.begin_as(first)
                elif not told.recall:
                    data = open_data(first.training(days.happened, day))
                    asked = requests_since(data, days.second(day))
                    told.users = len(asked.requests.user_idx)
                    told.recall = {loop.policy.name: worth(loop.served, asked) for loop in loops}
                    # What is served is another by the end of the day.
                    _write(file, told)
                for loop in loops:
                    if loop.policy.is_due(day, first_day):
                        progress.update(task, description=f"day {day + 1}: {loop.policy.name}")
                        loop.retrain(day)
                told.seconds, told.is_over = told.seconds + time.monotonic() - begin, True
                _write(file, told)
            progress.advance(task)
    told_days = [Told(**json.loads(file.read_text())) for file in sorted((folder / "days").glob("*.json"))]
    return Months(days.num_events, told_days, {loop.policy.name: loop.retrained() for loop in loops}, tuple(incidents))


def _write(file: Path, told: Told) -> None:
    aside = file.with_suffix(".part")
    aside.write_text(json.dumps(asdict(told)) + "\n")
    os.replace(aside, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where everything is made, and found again")
    parser.add_argument("--picture", type=Path, help="SVG (default: FOLDER/months.svg)")
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--items", type=int, default=3000)
    parser.add_argument("--events", type=int, default=210_000)
    parser.add_argument("--first-day", type=int, default=FIRST_DAY + 1, help="whose end the first model is of, from 1")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    logging.getLogger("recsys").setLevel(logging.WARNING)
    settings = WorldSettings(
        num_users=asked.users, num_items=asked.items, num_events=asked.events, days=asked.days, seed=asked.seed
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        console = Console()
        months = simulate(folder, settings, asked.first_day - 1)
        months.print(console)
        (folder / "months.json").write_text(json.dumps(months.to_json(), indent=1) + "\n")
        months.draw(asked.picture or folder / "months.svg")
    if months.gain("daily, warm", "never")[1] <= 0:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
