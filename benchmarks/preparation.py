"""Seconds and peak memory of preparing simulated events, beside plainly sorting them with DuckDB in the same run.

    python benchmarks/preparation.py --num-events 10000000
    python benchmarks/preparation.py --num-events 100000000 --num-users 5000000 --random

Bars: 10 million events in 60 s and 4 GiB, 100 million in 6 minutes and 8 GiB. Simulating 100 million takes longer than
preparing them, so `--random` draws users, items and times evenly, without tables of users and items.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import duckdb

from recsys.data.preparation.engines import DuckDB
from recsys.data.preparation.prepare import prepare
from recsys.data.preparation.settings import DataSettings
from recsys.data.preparation.splits import TemporalSplit
from recsys.data.simulation.synthetic import Synthetic
from recsys.data.sources import ParquetFolder


def draw(world: Path, num_events: int, *, num_users: int, num_items: int) -> None:
    """Write random events in ten shards. Squares make low numbers of items frequent."""
    (world / "interactions.parquet").mkdir(parents=True)
    with duckdb.connect() as connection:
        connection.execute("SET memory_limit = '2GB'")
        for shard in range(10):
            query = (
                f"SELECT floor(random() * {num_users})::BIGINT user_id,"
                f" floor(random() ** 2 * {num_items})::BIGINT item_id,"
                " floor(random() * 30000000)::BIGINT + 1700000000 AS timestamp, (random() * 3)::INT AS action,"
                f" (random() * 2)::INT AS surface FROM range({num_events // 10})"
            )
            connection.execute(f"COPY ({query}) TO '{world}/interactions.parquet/{shard}.parquet'")


def settings(*, random: bool) -> DataSettings:
    """Return the settings for drawn events, or for simulated ones with their tables of users and items."""
    features = {"interactions": {"action": {"role": "event"}, "surface": {"role": "request"}}}
    columns = {name: name for name in ("user_id", "item_id", "timestamp", "split")}
    return DataSettings(columns=columns, features=features if random else features | {"items": {}, "users": {}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-events", type=int, default=10_000_000)
    parser.add_argument("--num-users", type=int, default=500_000)
    parser.add_argument("--num-items", type=int, default=100_000)
    parser.add_argument("--random", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        if arguments.random:
            world = cache / "world"
            draw(world, arguments.num_events, num_users=arguments.num_users, num_items=arguments.num_items)
        else:
            sizes = {name: getattr(arguments, name) for name in ("num_users", "num_items", "num_events")}
            simulation = Synthetic(**sizes, topics_per_category=40)
            simulation.tables(cache / "sources")
            world = simulation.folder(cache / "sources")
        simulated = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        plain = None
        if not arguments.random:
            begin = time.perf_counter()
            query = "SELECT user_id, item_id, timestamp FROM read_parquet(?) ORDER BY user_id, timestamp"
            with duckdb.connect() as connection:
                connection.execute("SET memory_limit = '3GB'")
                connection.execute(
                    f"COPY ({query}) TO '{cache / 'sorted.parquet'}'", [str(world / "interactions.parquet/*")]
                )
            plain = time.perf_counter() - begin
        begin = time.perf_counter()
        source = ParquetFolder(str(world))
        given = settings(random=arguments.random)
        prepare(source, TemporalSplit(0.8, 0.1), settings=given, cache=cache, engine=DuckDB("3GB"))
        seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{arguments.num_events:,} events: prepared in {seconds:.1f} s ({arguments.num_events / seconds:,.0f} events/s)"
    )
    if plain is not None:
        print(f"{seconds / plain:.1f} x reading, sorting and writing three columns with DuckDB ({plain:.1f} s)")
    print(f"peak memory {peak:.2f} GiB, {simulated:.2f} GiB of it reached while simulating")


if __name__ == "__main__":
    main()
