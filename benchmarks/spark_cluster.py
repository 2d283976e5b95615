"""Preparation on a Spark cluster of one master and two workers with disks of their own, against DuckDB.

    python benchmarks/spark_cluster.py --num-events 10000000

As root each worker has a mount namespace of its own, in which the folders of the driver and of the other worker are
empty. Bars: the joined shards are the bytes of DuckDB; the driver (Python and Java together) stays below 1 GiB.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyspark

from recsys.data.dataset import PreparedDataset
from recsys.data.preparation.engines import DuckDB, Engine, Spark
from recsys.data.preparation.prepare import prepare
from recsys.data.preparation.settings import DataSettings
from recsys.data.preparation.splits import TemporalSplit
from recsys.data.simulation.synthetic import Synthetic
from recsys.data.sources import ParquetFolder

CLASSES = "org.apache.spark.deploy"


def prepared(root: Path, engine: Engine, cache: Path) -> PreparedDataset:
    features = {"interactions": {"action": {"role": "event"}, "surface": {"role": "request"}}, "items": {}, "users": {}}
    settings = DataSettings(features=features)
    return prepare(ParquetFolder(str(root)), TemporalSplit(0.8, 0.1), settings=settings, cache=cache, engine=engine)


@contextmanager
def started(
    name: str, folder: Path, *arguments: str, host: str = "127.0.0.1", hidden: tuple[Path, ...] = ()
) -> Iterator[str]:
    """Start a master or a worker. Yield the address of the master."""
    for inner in ("local", "work", "tmp"):
        (folder / inner).mkdir(parents=True)
    command = [f"{pyspark.__path__[0]}/bin/spark-class", f"{CLASSES}.{name}", "--host", host, *arguments]
    if hidden and os.geteuid() == 0:
        mounts = "".join(f"mount -t tmpfs none {path} && " for path in hidden)
        command = ["unshare", "--mount", "sh", "-c", mounts + 'exec "$@"', "sh", *command]
    environment = os.environ | {
        "SPARK_LOCAL_DIRS": str(folder / "local"),
        "SPARK_WORKER_DIR": str(folder / "work"),
        "TMPDIR": str(folder / "tmp"),
        "SPARK_LOCAL_IP": host,
        "PYSPARK_PYTHON": sys.executable,
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield wait_for(folder / "log", r"Starting Spark master at (spark://\S+)|(Successfully registered)")
        finally:
            process.terminate()
            process.wait()


def wait_for(log: Path, pattern: str) -> str:
    for _ in range(3000):
        if found := re.search(pattern, log.read_text()):
            return next(filter(None, found.groups()))
        time.sleep(0.1)
    raise SystemExit(log.read_text())


def tree(root: int) -> list[int]:
    """Return a process and all below it."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def resident(root: int) -> dict[str, float]:
    """Return the GiB of Python and of Java in a process and all below it."""
    sizes = {"Python": 0.0, "Java": 0.0}
    for process in tree(root):
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:
            continue
        for size in re.findall(r"VmRSS:\s+(\d+)", status):
            sizes["Java" if "Name:\tjava" in status else "Python"] += int(size) / 2**20
    return sizes


def processor_seconds(process: int) -> float:
    """Return the CPU seconds of a process and of its children that have ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-events", type=int, default=10_000_000)
    parser.add_argument("--num-users", type=int, default=500_000)
    parser.add_argument("--num-items", type=int, default=100_000)
    parser.add_argument("--shuffle-partitions", type=int, default=16)
    parser.add_argument("--driver", nargs=4, metavar=("MASTER", "ROOT", "OUTPUT", "CACHE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.driver:
        master, root, output, cache = arguments.driver
        options = {"spark.executor.memory": "1500m", "spark.driver.host": "127.0.0.1"}
        options["spark.driver.extraJavaOptions"] = "-XX:+UseSerialGC -XX:MaxMetaspaceSize=200m"
        engine = Spark(master, "500m", arguments.shuffle_partitions, output=f"file://{output}", options=options)
        prepared(Path(root), engine, Path(cache))
        return
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        base = Path(name)
        driver, output = base / "driver", base / "output"
        driver.mkdir()
        sizes = {"num_users": arguments.num_users, "num_items": arguments.num_items, "num_events": arguments.num_events}
        source = Synthetic(**sizes, topics_per_category=40)
        source.tables(base / "sources")
        root = source.folder(base / "sources")
        workers = [base / f"worker{number}" for number in range(2)]
        for folder in workers:
            folder.mkdir()
        master = stack.enter_context(started("master.Master", base / "master", "--port", "0", "--webui-port", "0"))
        for number, folder in enumerate(workers):
            hidden = (driver, workers[1 - number])
            shape = ("--webui-port", "0", "-c", "1", "-m", "2g", master)
            # Spark takes workers of one host for ones with one disk.
            host = f"127.0.0.{2 + number}"
            stack.enter_context(started("worker.Worker", folder, *shape, host=host, hidden=hidden))
        peak, spent, begin = {"both": 0.0, "Python": 0.0, "Java": 0.0}, 0.0, time.perf_counter()
        earlier = processor_seconds(os.getpid())
        command = [sys.executable, __file__, "--shuffle-partitions", str(arguments.shuffle_partitions)]
        command += ["--driver", master, str(root), str(output), str(driver / "cache")]
        process = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(driver), "SPARK_LOCAL_IP": "127.0.0.1"})
        over = threading.Event()
        while process.poll() is None:
            sizes = resident(process.pid)
            sizes["both"] = sum(sizes.values())
            peak = {name: max(size, sizes[name]) for name, size in peak.items()}
            # A process that its parent never waited for takes its seconds along; the largest sum has lost the least.
            spent = max(spent, sum(map(processor_seconds, tree(os.getpid()))) - earlier)
            over.wait(0.5)
        if process.returncode:
            raise SystemExit("\n".join((folder / "log").read_text()[-3000:] for folder in workers))
        print(f"{arguments.num_events:,} events on two workers: {time.perf_counter() - begin:.1f} s, {spent:.1f} CPU s")
        alone = ", ".join(f"{name} {peak[name]:.2f}" for name in ("Python", "Java"))
        print(f"driver: at most {peak['both']:.2f} GiB (bar: 1); {alone}")
        begin = time.perf_counter()
        one = prepared(root, DuckDB(), base / "duckdb")
        print(f"DuckDB: {time.perf_counter() - begin:.1f} s")
        other = PreparedDataset.open(driver / "cache/prepared" / one.path.name)
        joined = next((other.path / "events").glob("joined-*"))
        names = sorted(file.relative_to(one.path) for file in one.path.rglob("*") if file.is_file())
        places = [joined / name.name if name.parts[0] == "events" else other.path / name for name in names]
        same = [(one.path / name).read_bytes() == file.read_bytes() for name, file in zip(names, places, strict=True)]
        print(f"{sum(same)} of {len(same)} files have the bytes of DuckDB")


if __name__ == "__main__":
    main()
