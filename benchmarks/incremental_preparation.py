"""Seconds of preparing simulated events and one more day, from the earlier data set and anew, in the same run.

    python benchmarks/incremental_preparation.py --num-events 10000000

Bar: one more day on 10 million events takes 15% of preparing everything anew, and every file is the same. Both are done
in turn, and the medians compared; what was written before is on the disk before each begins. Crowds are copies of one
simulated crowd under other ids of users, which spares simulating them.
"""

import argparse
import filecmp
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import duckdb

from recsys.data.preparation.engines import DuckDB
from recsys.data.preparation.prepare import DataSettings, prepare
from recsys.data.preparation.splits import Temporal
from recsys.data.simulation.synthetic import Synthetic
from recsys.data.sources import ParquetFolder

DAY = 86_400
FEATURES = {"interactions": {"action": {"role": "event"}, "surface": {"role": "request"}}, "items": {}, "users": {}}


def write_days(source: Synthetic, world: Path, root: Path, num_crowds: int) -> Path:
    """The world repeated, its events until the last day as shards in `root`; the last day's shard, not there yet."""
    last_day = source.start_seconds + (source.days - 1) * DAY
    shards, last = root / "interactions.parquet", root.parent / "day-1.parquet"
    shards.mkdir(parents=True)
    shutil.copy(world / "items.parquet", root)
    moved = f"* EXCLUDE (crowd) REPLACE (user_id + crowd * {source.num_users} AS user_id)"
    with duckdb.connect() as connection:

        def copy(table: str, crowds: range, where: str, file: Path) -> None:
            rows = f"read_parquet('{world / table}'), range({crowds.start}, {crowds.stop}) crowds(crowd)"
            connection.execute(f"COPY (SELECT {moved} FROM {rows} WHERE {where}) TO '{file}' (FORMAT parquet)")

        copy("users.parquet", range(num_crowds), "true", root / "users.parquet")
        events = "interactions.parquet/*"
        for crowd in range(num_crowds):
            part = shards / f"day-0-{crowd:03}.parquet"
            copy(events, range(crowd, crowd + 1), f"timestamp < {last_day}", part)
        copy(events, range(num_crowds), f"timestamp >= {last_day}", last)
    return last


def timed(root: Path, cache: Path) -> tuple[float, float, Path]:
    """Seconds of the clock and of the processors, and the data set."""
    settings = DataSettings(features=FEATURES)
    os.sync()
    clock, work = time.perf_counter(), time.process_time()
    dataset = prepare(ParquetFolder(str(root)), Temporal(0.8, 0.1), settings, cache, DuckDB(memory="3GB"))
    return time.perf_counter() - clock, time.process_time() - work, dataset.path


def differing(one: Path, other: Path) -> list[str]:
    """Files that are not the same in both folders."""
    names = {str(path.relative_to(root)) for root in (one, other) for path in root.rglob("*") if path.is_file()}
    _, wrong, missing = filecmp.cmpfiles(one, other, names, shallow=False)
    return sorted(wrong + missing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-events", type=int, default=10_000_000)
    parser.add_argument("--num-users", type=int, default=500_000)
    parser.add_argument("--num-items", type=int, default=100_000)
    parser.add_argument("--num-crowds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worlds", type=Path, help="where simulated worlds are kept for the next time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache, crowds = Path(folder), arguments.num_crowds
        worlds = arguments.worlds or cache / "worlds"
        sizes = {"num_users": arguments.num_users // crowds, "num_events": arguments.num_events // crowds}
        source = Synthetic(**sizes, num_items=arguments.num_items, topics_per_category=40)
        source.tables(worlds)
        root = cache / "data"
        last_day = write_days(source, source.folder(worlds), root, crowds)
        timed(root, cache / "growing")
        shutil.move(last_day, root / "interactions.parquet" / last_day.name)
        grown, anew, wrong = [], [], set()
        for number in range(arguments.rounds):
            *spent, one = timed(root, cache / "growing")
            grown.append(spent)
            *spent, other = timed(root, cache / f"anew-{number}")
            anew.append(spent)
            wrong.update(differing(one, other))
            shutil.rmtree(one)
            shutil.rmtree(other)
    (grown_time, grown_work), (anew_time, anew_work) = (
        [statistics.median(column) for column in zip(*spent, strict=True)] for spent in (grown, anew)
    )
    print(f"anew: {anew_time:.2f} s ({anew_work:.2f} s of work) in the median of {arguments.rounds}")
    print(f"one more day: {grown_time:.2f} s ({grown_work:.2f} s of work)")
    print(f"{grown_time / anew_time:.1%} of the time, {grown_work / anew_work:.1%} of the work")
    print(f"files that differ: {', '.join(sorted(wrong)) or 'none'}")


if __name__ == "__main__":
    main()
