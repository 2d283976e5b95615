"""Seconds until a server is ready, and its memory, with a release of a million items.

    python benchmarks/serving_start.py --store runs/start
    python benchmarks/serving_start.py --store runs/parts --shards 4 --index ivf_flat

With --shards it measures a host of shard 0 beside a host of everything instead: bytes read, and memory after loading.

train.py and index.py make the release from items with titles and categories and a few users; it is kept for the next
run. `ready` is the time from the start of `serve.py role=all` to the first 200 of /readyz, with files cached by the
kernel. Memory is PSS: private pages, and the process's share of resident mapped files. A gateway without hosts loads no
release; its memory is the part that every server takes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fault_cluster import free_ports

ROOT = Path(__file__).parents[1]
STAGES = """
import sys, time
start = time.perf_counter()
from recsys.release.store import ReleaseStore
from recsys.serving.host.host import Host
from recsys.release.runtime.query_encoder import QueryEncoder
from recsys.serving.host.releases import ReleaseCache
def tell(name):
    global start
    print(f"  {name:<28}{time.perf_counter() - start:6.2f} s", flush=True)
    start = time.perf_counter()
tell("imports")
releases = ReleaseCache(sys.argv[1])
folder, manifest = releases.open(sys.argv[2])
tell("verification of every file")
known = releases.known_items(manifest.version)
tell("ids")
host = Host(releases, "host")
host.load(manifest.version)
tell("index and its self-check")
tower = QueryEncoder(folder, manifest, known)
tower.check()
tell("tower and its self-check")
"""
HOST = """
import gc, sys
from pathlib import Path
import pyarrow as pa
from recsys.release.runtime.shard import CorpusShard
from recsys.serving.host.host import Host
from recsys.serving.host.releases import ReleaseCache
def now():
    gc.collect()
    pa.default_memory_pool().release_unused()
    read = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar"))
    held = next(line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    return int(read.split()[1]), int(held.split()[1]) * 1024
before = now()
shard = CorpusShard.parse(sys.argv[3]) if sys.argv[3:] else None
host = Host(ReleaseCache(sys.argv[1], shard=shard), "host", shard=shard)
host.load(sys.argv[2])
read, held = (b - a for a, b in zip(before, now()))
print(f"host of {shard or 'all'}: reads {read / 1e6:.0f} MB, holds {held / 1e6:.0f} MB")
"""


def write_data(root: Path, num_items: int, *, with_strings: bool) -> None:
    """Write items with categories, and 2,000 users with 20 events each."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    ids = np.arange(num_items)
    item_ids = pa.array([f"item-{number:08d}" for number in ids]) if with_strings else pa.array(ids)
    category = rng.integers(0, 1000, num_items)
    items = {
        "item_id": item_ids,
        "title": pa.array(
            [f"A thing of kind {kind}, number {number}" for kind, number in zip(category, ids, strict=True)]
        ),
        "category": pa.array(category).cast(pa.string()),
        "brand": pa.array(rng.integers(0, 5000, num_items)).cast(pa.string()),
        "price": rng.exponential(20, num_items),
    }
    pq.write_table(pa.table(items), root / "items.parquet")
    chosen = rng.integers(0, num_items, 40_000)
    events = {
        "user_id": np.repeat(np.arange(2000), 20),
        "item_id": item_ids.take(pa.array(chosen)),
        "timestamp": np.tile(np.arange(20) * 86400, 2000),
    }
    pq.write_table(pa.table(events), root / "interactions.parquet")


def make_release(folder: Path, num_items: int, *, dim: int, with_strings: bool, options: Sequence[str] = ()) -> None:
    """Train for one epoch, and release the model."""
    write_data(folder / "data", num_items, with_strings=with_strings)
    run = folder / "run"
    train = [
        "data=parquet", f"data.root={folder / 'data'}", f"data.cache={folder / 'cache'}", "split=leave_last_out",
        f"model.dim={dim}", "user_tower=mean", "negatives=in_batch", "trainer.max_epochs=1", "logger=csv",
        f"hydra.run.dir={run}",
    ]  # fmt: skip
    index = [f"run={run}", f"store={folder / 'store'}", "alias=production", *options]
    for arguments in ([str(ROOT / "train.py"), *train], [str(ROOT / "index.py"), *index]):
        subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT)


def pss(pid: int) -> int:
    """Return the PSS of a process in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


def call(address: str, body: object = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(address, data), timeout=30) as answer:
        content: bytes = answer.read()
        return content


def port_and_address() -> tuple[int, str]:
    (port,) = free_ports(1)
    return port, f"http://127.0.0.1:{port}"


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    while True:
        try:
            call(address)
            return
        except (urllib.error.URLError, ConnectionError):
            if server.poll() is not None:
                raise SystemExit("the server ended") from None
            time.sleep(0.01)


def memory_without_release(folder: Path) -> int:
    """Return the PSS of a gateway without hosts in bytes."""
    port, address = port_and_address()
    arguments = ["role=gateway", "hosts=http://127.0.0.1:9", f"port={port}", f"events={folder / 'none.sqlite'}"]
    server = subprocess.Popen([sys.executable, str(ROOT / "serve.py"), *arguments, "log_level=error"], cwd=ROOT)
    try:
        wait_for(f"{address}/healthz", server)
        return pss(server.pid)
    finally:
        server.terminate()
        server.wait()


def measure(store: Path, folder: Path) -> None:
    """Start a server, wait until it is ready, send requests, and print its memory."""
    port, address = port_and_address()
    arguments = [f"store={store}", f"port={port}", f"events={folder / 'events.sqlite'}", "log_level=warning"]
    begin = time.perf_counter()
    server = subprocess.Popen([sys.executable, str(ROOT / "serve.py"), *arguments], cwd=ROOT)
    try:
        wait_for(f"{address}/readyz", server)
        ready = time.perf_counter() - begin
        size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
        idle = pss(server.pid)
        items = pq.read_table(folder / "data/items.parquet", columns=["item_id"])["item_id"]
        rng = np.random.default_rng(1)
        for number in range(500):
            history = [{"item_id": items[int(row)].as_py()} for row in rng.integers(0, len(items), 20)]
            body = {"history": history, "k": 100}
            if number % 5 == 0:
                body["filter"] = {"category": str(number)}
            call(f"{address}/v1/retrieve", body)
        used = pss(server.pid)
    finally:
        server.terminate()
        server.wait()
    print(f"release {size / 1e6:.0f} MB, ready in {ready:.2f} s")
    base = memory_without_release(folder)
    print(f"memory without a release   {base / 1e6:7.0f} MB")
    for name, memory in (("when ready", idle), ("after 500 requests", used)):
        shares = f"{memory / size:.2f} x the files, {(memory - base) / size:.2f} x without the part of every server"
        print(f"memory {name:<20}{memory / 1e6:7.0f} MB, {shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="folder for data, run and release")
    parser.add_argument("--num-items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--string-ids", action="store_true")
    parser.add_argument("--shards", type=int, help="parts of the release; measures hosts only")
    parser.add_argument("--index", default="auto")
    args = parser.parse_args()
    if not (args.store / "store/aliases/production").exists():
        options = [f"index={args.index}", f"shards={args.shards or 1}"]
        make_release(args.store, args.num_items, dim=args.dim, with_strings=args.string_ids, options=options)
    store = args.store / "store"
    if args.shards:
        for shard in ([], [f"0/{args.shards}"]):
            subprocess.run([sys.executable, "-c", HOST, str(store), "production", *shard], check=True)
        return
    subprocess.run([sys.executable, "-c", STAGES, str(store), "production"], check=True)
    measure(store, args.store)


if __name__ == "__main__":
    main()
