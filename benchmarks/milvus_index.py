"""Milvus as the index: recall, filters, rollouts, takedowns and crashes, with a server that this script starts.

    python benchmarks/milvus_index.py --num-items 200000     # recall, and filters of three kinds
    python benchmarks/milvus_index.py --store releases       # rollouts, takedowns and crashes

Recall is the share of the exact top-k that is found. A filter allows a share of the items: drawn at random, those
nearest to one item (`category`), or those farthest from users who are alike (`avoided`).

The second part copies the two newest releases of a store, fills their collections, and asks a gateway for them. The
alias moves from one to the other while requests are under way; an answer is mixed if its items are not exactly those
that its version gives. Then items are taken down one by one while requests are under way, and the server is killed with
SIGKILL. Exits with 1 if a bar is missed.

Needs Linux, and the packages `milvus` and `pymilvus`.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from index_throughput import synthetic
from serving_filters import KINDS, passing

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/helpers"))
from asking import call, living, settings
from milvus_server import MilvusProcess

from recsys.core.types import Float32Array
from recsys.index import exact_search, tune
from recsys.index.milvus import Milvus
from recsys.index.vector_database import CollectionIndex, Condition, Selection
from recsys.publishing.collections import fill_collection
from recsys.release.manifest import MANIFEST, Manifest
from recsys.release.runtime.retriever import Query, Retriever
from recsys.release.runtime.self_check import stored_check
from recsys.release.store import ReleaseStore
from recsys.serving.http.app import App

SHARES = (0.01, 0.1, 0.5, 0.9)
VERSION, K = "b" * 16, 100
ADMIN = {"authorization": "Bearer secret-of-the-tests"}


def found(
    collection: CollectionIndex,
    items: Float32Array,
    users: Float32Array,
    *,
    column: str | None = None,
    allow: Any = None,
) -> tuple[float, int, float]:
    """Return recall, fewest results of a query, and milliseconds of a query."""
    conditions = () if column is None else (Condition(column, "in", False, (True,)),)
    begin = time.perf_counter()
    _, rows = collection.search(users, K, allow=Selection(conditions, np.zeros(0, np.int64)))
    seconds = time.perf_counter() - begin
    _, want = exact_search(items, users, k=K, rows=None if allow is None else allow.rows)
    hits = sum(len(np.intersect1d(a[a >= 0], b[b >= 0])) for a, b in zip(rows, want, strict=True))
    return hits / max(1, int((want >= 0).sum())), int((rows >= 0).sum(axis=1).min()), 1000 * seconds / len(users)


def recall(server: MilvusProcess, num_items: int, num_queries: int) -> bool:
    items, users = synthetic(num_items, 64, 500 + num_queries)
    sample, users = users[:500], users[500:]
    alike = users[:1] + 0.05 * np.random.default_rng(2).standard_normal(users.shape, np.float32)
    filters = {
        f"{kind}_{share}": passing(kind, share, items=items, users=alike if kind == "avoided" else users)
        for kind in KINDS
        for share in SHARES
    }
    table = pa.table({"item_id": np.arange(num_items), **{name: one.mask for name, one in filters.items()}})
    database = Milvus(server.address)
    begin = time.perf_counter()
    database.fill(VERSION, table, items)
    print(f"filled with {num_items:,} items x 64 and {len(filters)} columns in {time.perf_counter() - begin:.0f} s")
    collection = CollectionIndex(database, VERSION, num_items=num_items, max_breadth=database.max_breadth(num_items))
    tuning = tune(collection, items, queries=sample, recall_target=0.98, k=K)
    print(f"tuned to recall {tuning.chosen.recall:.4f}: {collection.effort}\n")
    print("| filter | share | recall@100 | results | ms |\n|---|---|---|---|---|")
    value, fewest, milliseconds = found(collection, items, users)
    print(f"| none | 1 | {value:.4f} | {fewest} | {milliseconds:.2f} |")
    good = value >= 0.98 and fewest == K
    for name, allow in filters.items():
        kind, _, share = name.partition("_")
        asked = alike if kind == "avoided" else users
        value, fewest, milliseconds = found(collection, items, asked, column=name, allow=allow)
        print(f"| {kind} | {share} | {value:.4f} | {fewest} | {milliseconds:.2f} |", flush=True)
        good &= value >= 0.95 and fewest == min(K, allow.num_allowed)
    _, rows = collection.search(users, 1000)
    print(f"k=1000: {int((rows >= 0).sum(axis=1).min())} results at least")
    server.kill()
    server.start()
    while VERSION not in database.versions():
        time.sleep(0.1)
    print(f"after SIGKILL: {database.count(VERSION, ()):,} items, recall {found(collection, items, users)[0]:.4f}")
    good &= database.count(VERSION, ()) == num_items
    database.drop(VERSION)
    return good


class Fleet:
    """A copy of two releases of a store with their collections, and what each answers to some histories."""

    def __init__(self, origin: Path, folder: Path, address: str) -> None:
        versions = [path.name for path in sorted(origin.iterdir(), key=lambda p: -p.stat().st_mtime)]
        versions = [name for name in versions if name in ReleaseStore(origin).versions()][:2]
        assert len(versions) == 2, f"{origin} holds {len(versions)} releases, expected two"
        self.address, self.store, self.versions = address, folder / "store", versions
        self.bodies: list[dict[str, Any]] = []
        self.expected: dict[str, list[list[Any]]] = {}
        store = ReleaseStore(self.store)
        for version in versions:
            copied = shutil.copytree(origin / version, self.store / version)
            manifest = Manifest.load(copied)
            users = stored_check(copied, manifest)["embeddings"].reshape(-1, manifest.dim)
            filled = fill_collection(
                copied, manifest, store=store, database=Milvus(address), halves=(users, users), recall_target=0.98
            )
            (copied / MANIFEST).chmod(0o644)
            filled.save(copied)
        ids = Retriever.load(self.store, versions[0]).items["item_id"].to_pylist()
        rng = np.random.default_rng(0)
        histories = [[{"item_id": ids[place]} for place in rng.integers(0, len(ids), 3)] for _ in range(64)]
        self.bodies = [{"history": history, "k": 20} for history in histories]
        for version in versions:
            answers = Retriever.load(self.store, version).retrieve([Query(history) for history in histories], 20)
            self.expected[version] = [answer.item_ids for answer in answers]

    async def ask(self, app: App, number: int, **more: Any) -> tuple[int, str | None, list[Any]]:
        answer = await call(app, "POST", "/v1/retrieve", {**self.bodies[number], **more})
        if answer.status != 200:
            print(answer.status, answer.body, flush=True)
        items = [item["item_id"] for item in answer.body.get("items", ())]
        return answer.status, answer.body.get("version"), items


async def rollouts(app: App, fleet: Fleet, *, requests: int, moves: int) -> bool:
    store, counts = ReleaseStore(fleet.store), dict.fromkeys((*fleet.versions, "mixed", "failed"), 0)

    async def client(numbers: list[int]) -> None:
        for number in numbers:
            status, version, items = await fleet.ask(app, number % 64)
            if status != 200:
                counts["failed"] += 1
            elif items != fleet.expected[str(version)][number % 64]:
                counts["mixed"] += 1
            else:
                counts[str(version)] += 1
            answered.set()

    answered = asyncio.Event()
    clients = asyncio.gather(*(client(list(range(first, requests, 32))) for first in range(32)))
    moved = 0
    while not clients.done():
        done = sum(counts.values())
        if done >= moved * requests // (moves + 1) and moved < moves:
            store.set_alias("moving", fleet.versions[(moved + 1) % 2], why="benchmark")
            moved += 1
        answered.clear()
        await asyncio.wait([asyncio.ensure_future(answered.wait()), clients], return_when=asyncio.FIRST_COMPLETED)
    await clients
    print(f"{requests:,} requests during {moved} rollouts: {counts}")
    return not counts["mixed"] and not counts["failed"]


async def takedowns(app: App, fleet: Fleet, number: int) -> bool:
    seen, asked, failed = 0, 0, 0
    gone: set[Any] = set()
    victims = list(dict.fromkeys(item for items in fleet.expected[fleet.versions[0]] for item in items))[:number]
    for victim in victims:
        under_way = [asyncio.create_task(fleet.ask(app, one)) for one in range(16)]
        assert (await call(app, "POST", "/v1/admin/takedown", {"item_ids": [victim]}, ADMIN)).status == 200
        gone.add(victim)
        for status, _, items in await asyncio.gather(*(fleet.ask(app, one) for one in range(16))):
            asked += 1
            failed += status != 200
            seen += bool(gone & {*items})
        await asyncio.gather(*under_way)
    print(f"{len(victims)} takedowns, {asked:,} requests after them: {seen} with such an item, {failed} failed")
    return not seen and not failed


async def crashes(app: App, fleet: Fleet, server: MilvusProcess, *, kills: int) -> bool:
    before = [await fleet.ask(app, one) for one in range(64)]
    lost, slowest = 0, 0.0
    for _ in range(kills):
        await asyncio.to_thread(server.kill)
        begin = time.monotonic()
        await asyncio.to_thread(server.start)
        while (await call(app, "GET", "/readyz")).status != 200 or (await fleet.ask(app, 0))[0] != 200:
            await asyncio.sleep(0.05)
        slowest = max(slowest, time.monotonic() - begin)
        lost += sum([await fleet.ask(app, one) != before[one] for one in range(64)])
    print(f"{kills} times SIGKILL: {lost} answers of {kills * 64} differ; answers again after {slowest:.1f} s at most")
    return not lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-items", type=int, default=0)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rollouts", type=int, default=100)
    parser.add_argument("--takedowns", type=int, default=40)
    parser.add_argument("--kills", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        server = MilvusProcess(Path(folder) / "milvus")
        print(f"Milvus answers after {time.perf_counter() - begin:.1f} s")
        try:
            good = recall(server, args.num_items, args.queries) if args.num_items else True
            memory = next(
                line for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if "VmHWM" in line
            )
            print(f"memory of the server: {int(memory.split()[1]) / 1024:.0f} MiB")
            if args.store is not None:
                fleet = Fleet(args.store, Path(folder), server.address)
                ReleaseStore(fleet.store).set_alias("moving", fleet.versions[0], why="benchmark")

                async def use(app: App) -> bool:
                    mixed = await rollouts(app, fleet, requests=args.requests, moves=args.rollouts)
                    shown = await takedowns(app, fleet, args.takedowns)
                    return mixed and shown and await crashes(app, fleet, server, kills=args.kills)

                # No request is refused because the machine is busy.
                wanted = settings(
                    fleet,
                    Path(folder) / "events.sqlite",
                    role="gateway",
                    hosts=[server.address],
                    release="moving",
                    queue_seconds=30.0,
                )
                good &= living(wanted, use)
        finally:
            server.stop()
    if not good:
        sys.exit("a bar was missed")


if __name__ == "__main__":
    main()
