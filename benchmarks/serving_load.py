"""Requests a second of one machine, compared with a bare loop of the same work.

    python benchmarks/serving_load.py --work runs/load --beauty DATA/amazon-beauty
    python benchmarks/serving_load.py --work runs/load --cases million_mean --workers 2
    python benchmarks/serving_load.py --work runs/load --store releases --release production
    python benchmarks/serving_load.py --work runs/load --run runs/first

Three releases are made on first use and kept in `--work`: mean-pooling and transformer tower on Amazon Beauty, and a
million items (as in serving_start.py). They are trained for one epoch, because speed does not depend on quality.
--release or --run measure another release instead.

`serve.py role=all` runs as a process. Its event store has 5,000 users of the release's data with 50 events each; short
histories are filled up with events of other users. wrk (or load_generator.py) keeps 32 connections busy with POST
/v1/retrieve for one user after the other.

The bare loop parses, runs the tower, searches and serialises the same bodies, with the histories in memory: one request
at a time, and in batches of the number of connections, the largest that the server could form. It has as many processes
as the server, and runs before and after the load, which shows whether the speed of the machine changed. The bar is half
of the loop that takes one request at a time. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from load_generator import Load, drive
from rich.console import Console
from rich.table import Table
from serving_process import ROOT, call, serving
from serving_start import make_release

from recsys.release.runtime.retriever import Query, Retriever
from recsys.release.store import ReleaseStore
from recsys.serving.events import Event, SQLiteEvents, UserId
from recsys.serving.events.backfill import OWN, fill
from recsys.serving.http.codec import Decoder, encode
from recsys.serving.http.messages import RetrieveRequest, RetrieveResponse, ScoredItem
from recsys.serving.workers import worker_environment

NUM_EVENTS, NUM_USERS = 50, 5000
LEAST_RATIO = 0.5
CHECKED = 20
# Rounding differences of a tower that answers several requests together.
TOLERANCE = 1e-4
_parse = Decoder(RetrieveRequest)


class Case(NamedTuple):
    """A release, and its bars: requests a second (least), p99 in ms."""

    name: str
    store: Path
    release: str
    least: float
    p99: float


def train(work: Path, *overrides: str) -> None:
    """Train a run, and release it as `production`."""
    run = [*overrides, "trainer.max_epochs=1", "logger=csv", f"hydra.run.dir={work / 'run'}"]
    release(work, [str(ROOT / "train.py"), "data=parquet", f"data.cache={work / 'cache'}", *run])


def release(work: Path, first: Sequence[str], *, run: Path | None = None) -> None:
    index = [str(ROOT / "index.py"), f"run={run or work / 'run'}", f"store={work / 'store'}", "alias=production"]
    for arguments in (first, index):
        if arguments:
            subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT)


def built(name: str, work: Path, *, beauty: Path | None) -> Case:
    """Return one of the three cases; make its release if it is missing."""
    made = (work / "store/aliases/production").exists()
    if not made and name == "million_mean":
        shutil.rmtree(work, ignore_errors=True)
        make_release(work, 1_000_000, dim=64, with_strings=False)
    elif not made:
        if beauty is None or not beauty.is_dir():
            raise SystemExit(f"--beauty: found {beauty}, expected a folder with interactions.parquet of Amazon Beauty")
        tower = name.partition("_")[2]
        train(work, f"data.root={beauty}", "data.time=order", "split=leave_last_out", f"user_tower={tower}")
    return Case(name, work / "store", "production", *((3000, 30) if name == "beauty_mean" else (1000, 60)))


def fill_events(case: Case, path: Path) -> list[UserId]:
    """Store 50 events for each of some users of the release's data, and return these users."""
    fill(str(case.store), case.release, events=str(path), max_events=NUM_EVENTS, root=OWN)
    store = SQLiteEvents(path, NUM_EVENTS)
    users = store.users("", 100_000)
    np.random.default_rng(0).shuffle(users)
    users = users[:NUM_USERS]
    histories = store.histories(users)
    # Events of other users fill up short histories.
    others = itertools.cycle([event for history in reversed(histories) for event in history])
    added = []
    for user, history in zip(users, histories, strict=True):
        first = history[0].timestamp
        for number in range(NUM_EVENTS - len(history)):
            added.append((user, Event(next(others).item_id, first - number - 1)))
    for begin in range(0, len(added), 50_000):
        store.append(added[begin : begin + 50_000])
    store.close()
    return users


def queries(retriever: Retriever, path: Path, *, users: Sequence[UserId]) -> dict[UserId, Query]:
    """Return the queries that the server makes for users from its event store."""
    store, names = SQLiteEvents(path, NUM_EVENTS), retriever.query_encoder.names
    read = names["history"]
    found = {}
    for user, events in zip(users, store.histories(users), strict=True):
        history = []
        for item, seconds, features in events:
            kept = {name: value for name, value in features.items() if name in read}
            history.append({"item_id": item, "timestamp": seconds, **kept})
        profile = {name: value for name, value in store.profile(user).items() if name in names["user"]}
        found[user] = Query(history, user, profile)
    store.close()
    return found


def answer(retriever: Retriever, known: dict[UserId, Query], *, bodies: Sequence[bytes]) -> list[bytes]:
    """Answer bodies, all with the same k, without a server."""
    asked = [_parse(body) for body in bodies]
    version = retriever.version
    return [
        encode(
            RetrieveResponse(
                list(map(ScoredItem, found.item_ids, found.scores.tolist())), version, version, version, "bare",
                found.history_length, found.unknown_items,
            )
        )
        for found in retriever.retrieve([known[one.user_id] for one in asked], asked[0].k)
    ]  # fmt: skip


class BareLoop(NamedTuple):
    """Work of one process of a bare loop: bodies in batches, for some seconds."""

    case: Case
    path: Path
    bodies: Sequence[bytes]
    batch: int
    seconds: float

    def run(self, start: Barrier) -> float:
        """Return the requests a second of one process."""
        retriever, batch = Retriever.load(self.case.store, self.case.release, threads=1), self.batch
        # A part of the bodies is enough, and needs less memory.
        bodies = self.bodies[: 64 * batch if batch > 1 else 2000]
        known = queries(retriever, self.path, users=[_parse(body).user_id for body in bodies])
        batches = itertools.cycle([bodies[at : at + batch] for at in range(0, len(bodies), batch)])
        answer(retriever, known, bodies=next(batches))
        start.wait()
        begin, done = time.perf_counter(), 0
        while (passed := time.perf_counter() - begin) < self.seconds:
            done += len(answer(retriever, known, bodies=next(batches)))
        return done / passed


def bare(loop: BareLoop, workers: int) -> float:
    """Return the requests a second of all processes."""
    context = multiprocessing.get_context("spawn")
    # The processes share the cores as those of the server do.
    shared = worker_environment(0, count=workers, metrics=loop.path.parent)
    with shared, context.Manager() as manager:
        start = manager.Barrier(workers)
        with context.Pool(workers) as pool:
            return sum(pool.map(loop.run, [start] * workers, chunksize=1))


def check(address: str, case: Case, *, path: Path, bodies: Sequence[bytes]) -> None:
    """Check that the server and the bare loop answer equally."""
    retriever = Retriever.load(case.store, case.release, threads=1)
    for body in bodies[:CHECKED]:
        asked = msgspec.json.decode(body)
        found = call(f"{address}/v1/retrieve", asked)
        known = queries(retriever, path, users=[asked["user_id"]])
        expected = msgspec.json.decode(answer(retriever, known, bodies=[body])[0])
        scores = [[item["score"] for item in one["items"]] for one in (found, expected)]
        assert found["version"] == expected["version"], (found["version"], expected["version"])
        assert found["history_length"] == expected["history_length"] > 0
        assert len(scores[0]) == len(scores[1]) == asked["k"]
        assert np.allclose(*scores, atol=TOLERANCE), f"user {asked['user_id']}: {scores}"


class Measured(NamedTuple):
    """Load of one case, and requests a second of the bare loops, one at a time (single) and in batches (batched)."""

    load: Load
    single: float
    batched: float


def measure(case: Case, workers: int, *, args: argparse.Namespace, folder: Path) -> Measured:
    path = folder / "events.sqlite"
    users = fill_events(case, path)
    bodies = [encode({"user_id": user, "k": args.k}) for user in users]
    lines = folder / "bodies.jsonl"
    lines.write_bytes(b"\n".join(bodies) + b"\n")
    options = [f"store={case.store.absolute()}", f"release={case.release}", f"workers={workers}", f"events={path}"]

    def bares() -> list[float]:
        each = max(1.0, args.seconds / 6)
        return [bare(BareLoop(case, path, bodies, batch, each), workers) for batch in (1, args.connections)]

    before = bares()
    with serving(folder, *options, f"max_events={NUM_EVENTS}") as (address, _):
        check(address, case, path=path, bodies=bodies)
        url = f"{address}/v1/retrieve"
        drive(url, lines, args.connections, 2, folder)
        load = drive(url, lines, args.connections, args.seconds, folder)
        check(address, case, path=path, bodies=bodies)
    single, batched = (sum(pair) / 2 for pair in zip(before, bares(), strict=True))
    return Measured(load, single, batched)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    names = ["beauty_mean", "beauty_transformer", "million_mean"]
    data = os.environ.get("RECSYS_DATA")
    add("--work", type=Path, required=True, help="folder for what is made, kept for the next run")
    add("--cases", nargs="+", choices=names, default=names)
    add("--beauty", type=Path, default=Path(data) / "amazon-beauty" if data else None, help="folder of its tables")
    add("--store", type=Path, default=Path("releases"), help="of --release")
    add("--release", help="version or alias, instead of the cases")
    add("--run", type=Path, help="run folder, instead of the cases")
    add("--workers", type=int, nargs="+", default=[1, 2], help="processes of the server")
    add("--connections", type=int, default=32)
    add("--seconds", type=int, default=15, help="of load, each; the bare loops take four sixths of it")
    add("--k", type=int, default=100, help="items of an answer")
    args = parser.parse_args()
    work = args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    if args.release:
        _, manifest = ReleaseStore(args.store).open(args.release)
        cases = [Case(args.release, args.store.absolute(), manifest.version, 0, np.inf)]
    elif args.run:
        release(work / "run_release", [], run=args.run.absolute())
        cases = [Case(args.run.name, work / "run_release/store", "production", 0, np.inf)]
    else:
        cases = [built(name, work / name, beauty=args.beauty and args.beauty.absolute()) for name in args.cases]
    console = Console(width=130)
    generator = "wrk" if shutil.which("wrk") else "load_generator.py"
    console.print(
        f"{os.cpu_count()} cores, load of the machine {os.getloadavg()[0]:.1f}; {generator},"
        f" {args.connections} connections, {args.seconds} s, k={args.k}, histories of {NUM_EVENTS} events"
    )
    table = Table(
        "release", "workers", "requests/s", "p50 ms", "p99 ms", "errors", "bare loop", "share", "in batches", "share"
    )
    missed = []
    for case, workers in itertools.product(cases, args.workers):
        with tempfile.TemporaryDirectory() as folder:
            found = measure(case, workers, args=args, folder=Path(folder))
        load, rate = found.load, found.load.answered / found.load.seconds
        ok = rate >= case.least and load.p99 <= case.p99 and rate >= LEAST_RATIO * found.single and not load.errors
        missed += [] if ok else [f"{case.name}, workers={workers}"]
        row = [f"{rate:,.0f}", f"{load.p50:.1f}", f"{load.p99:.1f}", str(load.errors)]
        for loop in (found.single, found.batched):
            row += [f"{loop:,.0f}", f"{rate / loop:.0%}"]
        table.add_row(case.name, str(workers), *row)
    console.print(table)
    if missed:
        console.print(f"missed: {'; '.join(missed)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
