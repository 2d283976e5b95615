"""Seconds and peak memory of preparing simulated events, beside plainly sorting them with DuckDB in the same run.

    python benchmarks/preparation.py --num-events 10000000

Bar: 10 million events in 60 s and 4 GiB.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-events", type=int, default=10_000_000)
    parser.add_argument("--num-users", type=int, default=500_000)
    parser.add_argument("--num-items", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        sizes = {"num_users": arguments.num_users, "num_items": arguments.num_items, "num_events": arguments.num_events}
        source = Synthetic(**sizes, topics_per_category=40)
        source.tables(cache / "sources")
        world = source.folder(cache / "sources")
        simulated = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        begin = time.perf_counter()
        query = "SELECT user_id, item_id, timestamp FROM read_parquet(?) ORDER BY user_id, timestamp"
        with duckdb.connect() as connection:
            connection.execute("SET memory_limit = '3GB'")
            connection.execute(
                f"COPY ({query}) TO '{cache / 'sorted.parquet'}'", [str(world / "interactions.parquet/*")]
            )
        plain = time.perf_counter() - begin
        features = {
            "interactions": {"action": {"role": "event"}, "surface": {"role": "request"}},
            "items": {},
            "users": {},
        }
        columns = {name: name for name in ("user_id", "item_id", "timestamp", "split")}
        settings = DataSettings(columns=columns, features=features)
        begin = time.perf_counter()
        prepare(
            ParquetFolder(str(world)), TemporalSplit(0.8, 0.1), settings=settings, cache=cache, engine=DuckDB("3GB")
        )
        seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{arguments.num_events:,} events: prepared in {seconds:.1f} s ({arguments.num_events / seconds:,.0f} events/s)"
    )
    print(f"{seconds / plain:.1f} x reading, sorting and writing three columns with DuckDB ({plain:.1f} s)")
    print(f"peak memory {peak:.2f} GiB, {simulated:.2f} GiB of it reached while simulating")


if __name__ == "__main__":
    main()
