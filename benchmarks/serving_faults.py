"""Check that no user embedding is searched in an index of another version, during rollouts, load and faults.

    python benchmarks/serving_faults.py                             # 20,000 requests, its own two releases
    python benchmarks/serving_faults.py --requests 1000000          # the full run
    python benchmarks/serving_faults.py --store STORE --versions V1 V2

A gateway and some hosts run as processes, each host behind a proxy. While clients send requests, versions are rolled
out and back repeatedly, hosts are killed (SIGKILL), restarted and paused (SIGSTOP), and connections are cut and
delayed. At least one host is always healthy. The two releases were trained from different seeds, so the result of a
mixed pair differs from the result of either release: every answer is compared with the expected answer of its version.

Outcomes: answered, unavailable (503 with a reason), failed (any other status, or no response). Recovery is the longest
time that any request waited after a fault began. `used again` is the time from the first probe that a restarted host
answers to its first answer to a user. --no-times leaves out the bars on durations, which hold on an idle machine only.
Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fault_cluster import ROOT, TOKEN, Proxy, Server, free_ports
from rich.console import Console
from rich.table import Table

from recsys.release.runtime.retriever import Query, Retriever
from recsys.release.store import ReleaseStore
from recsys.serving.gateway.http_client import HTTPClient, NoAnswerError

K = 10
NUM_USERS = 200
# Rounding of a tower that answers several requests at once.
TOLERANCE = 1e-4
# After a fault, requests that begin within so many seconds may feel it.
AFTERMATH = 3.0
# A gateway answers 503 after 4 s; a request that takes this long hangs.
ANSWER_SECONDS = 60.0
LEAST_AVAILABILITY, LONGEST_RECOVERY = 0.999, 2.0
# Rows whose bars depend on the speed of the machine; a 503 comes after a fixed number of seconds.
TIMES = ("availability", "recovery, longest", "used again, longest")


@dataclass
class Truth:
    """Expected answers.

    Attributes:
        histories: history of each user.
        answers: (version of the tower, version of the index) -> for each user, scores of the K best items, and
            item -> score of the 3K best.
    """

    histories: list[list[dict[str, Any]]]
    answers: dict[tuple[str, str], list[tuple[np.ndarray, dict[Any, float]]]]

    def is_of(self, pair: tuple[str, str], user: int, items: list[dict[str, Any]]) -> bool:
        """Return whether a user gets these items from a tower and an index."""
        best, scores = self.answers[pair][user]
        found = np.array([item["score"] for item in items])
        known = np.array([scores.get(item["item_id"], np.inf) for item in items])
        # Items with equal scores have no fixed order.
        return len(found) == len(best) and all(np.abs(found - other).max() < TOLERANCE for other in (best, known))


@dataclass
class Record:
    """Requests, faults and rollouts of a run."""

    sent: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[float, str]] = field(default_factory=list)
    waiting: dict[str, float] = field(default_factory=dict)
    used_again: list[float] = field(default_factory=list)
    rollouts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def find_truth(store: str, versions: list[str], seed: int) -> Truth:
    """Compute the answers of each pair, and check that no pair answers any user like another one."""
    retrievers = {version: Retriever.load(store, version, threads=1) for version in versions}
    rng = np.random.default_rng(seed)
    known = retrievers[versions[0]].items["item_id"].to_pylist()
    histories = [
        [{"item_id": known[row]} for row in rng.integers(len(known), size=1 + u % 20)] for u in range(NUM_USERS)
    ]
    queries = [Query(history, user_id=user) for user, history in enumerate(histories)]
    truth = Truth(histories, {})
    for tower, of_tower in retrievers.items():
        embeddings = of_tower.embed(queries)
        for index, of_index in retrievers.items():
            seen = [[event["item_id"] for event in history] for history in histories]
            hits = of_index.item_search.search(embeddings, 3 * K, exclude=seen)
            truth.answers[tower, index] = [
                (scores[:K], dict(zip(ids, scores.tolist(), strict=True))) for ids, scores in hits
            ]
    for pair, answers in truth.answers.items():
        for user, (_, scores) in enumerate(answers):
            items = [{"item_id": item_id, "score": score} for item_id, score in list(scores.items())[:K]]
            if [other for other in truth.answers if truth.is_of(other, user, items)] != [pair]:
                raise SystemExit("the releases are too much alike: a mixed pair would answer as one of them does")
    return truth


async def ask(
    port: int, truth: Truth, *, record: Record, num_requests: int, seed: int, deadline: asyncio.Event
) -> None:
    """Run one client, which sends a request as soon as the last one is answered."""
    pool, choose = HTTPClient(("127.0.0.1", port)), random.Random(seed)
    while len(record.sent) < num_requests or not deadline.is_set():
        user = choose.randrange(NUM_USERS)
        body = json.dumps({"user_id": user, "history": truth.histories[user], "k": K}).encode()
        began = time.monotonic()
        try:
            status, answer = await pool.request("POST", "/v1/retrieve", body=body, seconds=ANSWER_SECONDS)
        except NoAnswerError as error:
            status, answer = 0, str(error).encode()
        now = time.monotonic()
        record.sent.append(began)
        record.done.append(now)
        judge(record, truth, user=user, status=status, answer=answer, now=now)
    await pool.close()


def judge(record: Record, truth: Truth, *, user: int, status: int, answer: bytes, now: float) -> None:
    """Count one answer."""
    if status != 200:
        record.outcomes["unavailable" if status == 503 else "failed"] += 1
        record.wrong.append(f"{status}: {answer.decode(errors='replace')[:200]}")
        return
    said = json.loads(answer)
    version = said["version"]
    record.outcomes["answered"] += 1
    record.versions[version] += 1
    if said["host"] in record.waiting:
        record.used_again.append(now - record.waiting.pop(said["host"]))
    pairs = [pair for pair in truth.answers if truth.is_of(pair, user, said["items"])]
    if not said["user_tower_version"] == said["index_version"] == version or any(a != b for a, b in pairs):
        record.outcomes["mixed"] += 1
    elif pairs != [(version, version)]:
        record.outcomes["wrong"] += 1
        record.wrong.append(f"{version}, user {user}: items of {pairs or 'no pair'}")


async def break_things(
    hosts: list[Server], proxies: list[Proxy], *, record: Record, seed: int, stop: asyncio.Event
) -> None:
    """Inject faults, several at once, with at least one healthy host."""
    choose = random.Random(seed)
    broken: set[int] = set()
    mending: set[asyncio.Task[None]] = set()
    while not stop.is_set():
        await asyncio.sleep(choose.uniform(0.2, 1.5))
        whole = [number for number in range(len(hosts)) if number not in broken]
        if len(whole) < 2:
            continue
        number = choose.choice(whole)
        fault = choose.choice((kill, pause, cut, delay))
        broken.add(number)
        record.waiting.pop(proxies[number].name, None)
        record.faults.append((time.monotonic(), fault.__name__))
        task = asyncio.create_task(fault(hosts[number], proxies[number], choose.random(), record))
        mending.add(task)
        task.add_done_callback(mending.discard)
        task.add_done_callback(lambda _, number=number: broken.discard(number))
    await asyncio.gather(*mending)


async def kill(host: Server, proxy: Proxy, much: float, record: Record) -> None:
    host.kill()
    await asyncio.sleep(much)
    host.start()
    await host.ready()
    record.waiting[proxy.name] = time.monotonic()


async def pause(host: Server, proxy: Proxy, much: float, record: Record) -> None:
    host.send(signal.SIGSTOP)
    await asyncio.sleep(0.2 + 4 * much)
    host.send(signal.SIGCONT)
    record.waiting[proxy.name] = time.monotonic()


async def cut(host: Server, proxy: Proxy, much: float, record: Record) -> None:  # noqa: ARG001
    for _ in range(1 + int(5 * much)):
        proxy.cut()
        await asyncio.sleep(0.1)


async def delay(host: Server, proxy: Proxy, much: float, record: Record) -> None:  # noqa: ARG001
    proxy.delay = 0.3 * much
    await asyncio.sleep(2)
    proxy.delay = 0.0


async def roll(command: list[str], version: str, record: Record, stop: asyncio.Event) -> None:
    """Roll out and back until `stop`, at least once each."""
    while not stop.is_set() or len(record.rollouts) < 2:
        for words in (["start", f"version={version}"], ["rollback"]):
            name = words[0]
            while errors := await run_rollout([*command, *words]):
                # A host was down for longer than the rollout waits.
                record.rollouts["gone on after a failure"] += 1
                words = ["resume"] if "`resume`" in errors else words
            record.rollouts[name] += 1


async def run_rollout(command: list[str]) -> str:
    """Return the errors about a host that was down; an empty text after success."""
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, said = await process.communicate()
    errors = said.decode() if process.returncode else ""
    if errors and "`resume`" not in errors and "does not answer" not in errors:
        raise SystemExit(errors)
    return errors


def recovery(record: Record) -> list[float]:
    """Return for each fault the longest time that a request waited after it, in seconds."""
    order = np.argsort(record.sent)
    sent, done = np.array(record.sent)[order], np.array(record.done)[order]
    longest = float((done - sent).max(initial=0))
    waits = []
    for when, _ in record.faults:
        first, last = np.searchsorted(sent, [when - longest, when + AFTERMATH])
        felt = done[first:last] > when
        waits.append(float((done[first:last] - np.maximum(sent[first:last], when))[felt].max(initial=0)))
    return waits


def report(record: Record, console: Console, *, with_times: bool = True) -> bool:
    """Print the table, and return whether every bar was reached."""
    answered = record.outcomes["answered"]
    missed = record.outcomes["unavailable"] + record.outcomes["failed"]
    waits, again = recovery(record), record.used_again
    availability = answered / max(1, answered + missed)
    rows = [
        ("answered", f"{answered:,}", "", answered > 0),
        ("of mixed versions", str(record.outcomes["mixed"]), "0", not record.outcomes["mixed"]),
        ("wrong", str(record.outcomes["wrong"]), "0", not record.outcomes["wrong"]),
        ("failed", str(record.outcomes["failed"]), "0", not record.outcomes["failed"]),
        ("availability", f"{availability:.4%}", f">= {LEAST_AVAILABILITY:.1%}", availability >= LEAST_AVAILABILITY),
        (
            "recovery, longest",
            f"{max(waits, default=0):.2f} s",
            f"<= {LONGEST_RECOVERY:g} s",
            max(waits, default=0) <= LONGEST_RECOVERY,
        ),
        ("recovery, median", f"{np.median(waits) if waits else 0:.2f} s", "", True),
        (
            "used again, longest",
            f"{max(again, default=0):.2f} s",
            f"<= {LONGEST_RECOVERY:g} s",
            max(again, default=0) <= LONGEST_RECOVERY,
        ),
        *((f"answers of {version}", f"{count:,}", "", True) for version, count in sorted(record.versions.items())),
        ("versions that answered", str(len(record.versions)), "2", len(record.versions) == 2),
        *((f"rollouts: {name}", str(count), "", True) for name, count in sorted(record.rollouts.items())),
        *((f"faults: {n}", str(c), "", True) for n, c in sorted(Counter(name for _, name in record.faults).items())),
    ]
    table = Table("", "measured", "bar", "")
    if not with_times:
        rows = [(name, value, "", True) if name in TIMES else (name, value, *rest) for name, value, *rest in rows]
    for name, value, bar, is_reached in rows:
        table.add_row(name, value, bar, "" if is_reached else "MISSED")
    console.print(table)
    for line in record.wrong[:5]:
        console.print(line, markup=False)
    return all(is_reached for *_, is_reached in rows)


def make_releases(folder: Path) -> tuple[str, list[str]]:
    """Train two small models of the same simulated pins from different seeds, and release them."""
    store = folder / "releases"
    for seed in (0, 1):
        small = ["data.num_users=500", "data.num_items=600", "data.num_events=8000", "user_tower=mean", "model.dim=32"]
        run = [f"seed={seed}", "trainer.max_epochs=2", "logger=csv", f"hydra.run.dir={folder}/run{seed}"]
        for words in (["train.py", *small, *run], ["index.py", f"run={folder}/run{seed}", f"store={store}"]):
            subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return str(store), ReleaseStore(store).versions()


async def measure(given: argparse.Namespace, folder: Path) -> Record:
    """Start all processes, send requests and inject faults, and end all processes."""
    store, versions = given.store, given.versions
    truth = find_truth(store, versions, given.seed)
    ReleaseStore(store).set_alias("production", versions[0], why="serving_faults")
    ports = free_ports(2 * given.hosts + 1)
    own = [f"store={store}", f"hydra.run.dir={folder}"]
    hosts = [Server(folder, port, "role=host", "release=production", *own) for port in ports[: given.hosts]]
    proxies = [Proxy(port, host.port) for port, host in zip(ports[given.hosts : -1], hosts, strict=True)]
    places = ",".join(f"http://{proxy.name}" for proxy in proxies)
    gateway = Server(folder, ports[-1], "role=gateway", f"hosts=[{places}]", f"events={folder}/events.sqlite", *own)
    record, clients_end, end = Record(), asyncio.Event(), asyncio.Event()
    try:
        for host, proxy in zip(hosts, proxies, strict=True):
            host.start()
            await proxy.start()
        await asyncio.gather(*(host.ready() for host in hosts))
        gateway.start()
        await gateway.ready()
        names = [f"hosts=[{','.join(host.name for host in hosts)}]", f"gateways=[{gateway.name}]", f"store={store}"]
        options = [f"admin_token={TOKEN}", f"state={folder}/rollout.json", "wait=0.2", "patience=5"]
        command = [sys.executable, "-m", "recsys.cli", "rollout", *names, *options]
        rolling = asyncio.create_task(roll(command, versions[1], record, end))
        breaking = asyncio.create_task(break_things(hosts, proxies, record=record, seed=given.seed, stop=end))
        clients = [
            asyncio.create_task(
                ask(
                    gateway.port,
                    truth,
                    record=record,
                    num_requests=given.requests,
                    seed=number,
                    deadline=clients_end,
                )
            )
            for number in range(given.connections)
        ]
        while len(record.sent) < given.requests:
            await asyncio.sleep(0.1)
            for task in (rolling, breaking, *clients):
                if task.done():
                    task.result()
        end.set()
        await asyncio.gather(rolling, breaking)
        clients_end.set()
        await asyncio.gather(*clients)
    finally:
        for server in (*hosts, gateway):
            server.kill()
        for proxy in proxies:
            await proxy.stop()
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--store", help="of releases; its alias `production` moves")
    parser.add_argument("--versions", nargs=2, help="two releases of the same items and dimension")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-times", action="store_true", help="without bars on durations")
    given = parser.parse_args()
    # Ends like Ctrl-C: with the processes that it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        if given.store is None:
            given.store, given.versions = make_releases(Path(folder))
        record = asyncio.run(measure(given, Path(folder)))
    return 0 if report(record, Console(), with_times=not given.no_times) else 1


if __name__ == "__main__":
    raise SystemExit(main())
