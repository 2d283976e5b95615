"""Check a fleet under many kinds of faults: its recorded history must agree with a model.

    python benchmarks/serving_history.py --minutes 60 [--store STORE --versions V1 V2]
    python benchmarks/serving_history.py --minutes 2 --plant lost     # or mixed, or stale: the checker must find it

A gateway and three hosts run as processes, with events, item updates and state on a Valkey server (needs redis-server
or valkey-server). Clients post events and read them back, ask for items, and take items down, while versions are rolled
out and back. Meanwhile hosts, gateway and Valkey are killed (SIGKILL) and paused (SIGSTOP), the clocks of hosts and
gateway step by a day, `CONFIG SET` changes what Valkey keeps, its disk is full (needs root, for a file system of its
own), and the network is cut between gateway and hosts, and between each of them and Valkey. After every 30 s of faults
all is mended, and 30 s are calm, so that rollouts which a fault stopped end too.

Then every acknowledged event must be in the store, every read must have the events that were acknowledged before it,
each answer must be what one version answers without the items that were taken down before (`history_model.py`), and no
item may be shown after its takedown was acknowledged. Exits with 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import redis
from fault_cluster import ROOT, TOKEN, Proxy, Server, free_ports
from history_model import Asked, History, Model, Read, Stored, TakenDown, check
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from serving_faults import make_releases
from serving_takedowns import call

from recsys.core.errors import UserError
from recsys.operations.rollout.actions import run_action
from recsys.release.runtime.retriever import Query, Retriever
from recsys.release.store import ReleaseStore
from recsys.serving.events.valkey import ValkeyEvents

K, NUM_QUERIES, EVENTS_PER_USER, FIRST_ITEM, DAY = 10, 100, 30, 10**12, 86400
DISK_MB = 256
FAULT_SECONDS, CALM_SECONDS = 30.0, 30.0
BINARY = shutil.which("valkey-server") or shutil.which("redis-server")


def find_model(store: str, versions: list[str], seed: int) -> tuple[Model, list[list[dict[str, Any]]]]:
    """Return what each version answers to some histories, and these histories."""
    retrievers = {version: Retriever.load(store, version, threads=1) for version in versions}
    rng = np.random.default_rng(seed)
    items = retrievers[versions[0]].items["item_id"].to_pylist()
    histories = [
        [{"item_id": items[row]} for row in rng.integers(len(items), size=1 + q % 20)] for q in range(NUM_QUERIES)
    ]
    row_of, scores = {item: row for row, item in enumerate(items)}, {}
    for tower, of_tower in retrievers.items():
        embeddings = of_tower.embed([Query(one) for one in histories])
        for index, of_index in retrievers.items():
            scores[tower, index] = np.full((NUM_QUERIES, len(items)), -np.inf)
            for query, (ids, found) in enumerate(of_index.item_search.search(embeddings, len(items))):
                scores[tower, index][query, [row_of[item] for item in ids]] = found
    return Model(items, scores, [frozenset(event["item_id"] for event in one) for one in histories], K), histories


class Valkey:
    """A Valkey server with durable settings, and a file system of its own if that is allowed."""

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
        self.has_disk = subprocess.run(mount, check=False, capture_output=True).returncode == 0
        self.client = redis.Redis(port=self.port, socket_timeout=2)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, unless it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        command = [str(BINARY), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), *durable]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        if self.has_disk:
            subprocess.run(["umount", str(self.folder)], check=False)


class Fleet:
    """All processes, and the proxies between them; each fault breaks something for some seconds, and mends it."""

    def __init__(self, folder: Path, store: str, *, plant: str) -> None:
        self.valkey, ports = Valkey(folder / "valkey"), free_ports(11)
        self.loop = asyncio.new_event_loop()
        self.clocks = [folder / f"clock{number}" for number in range(4)]
        self.to_valkey = [Proxy(port, self.valkey.port) for port in ports[:4]]
        self.to_hosts = [Proxy(port, host) for port, host in zip(ports[4:7], ports[7:10], strict=True)]
        places = ",".join(f"http://{proxy.name}" for proxy in self.to_hosts)
        roles = [*(["role=host", "release=production"] for _ in range(3)), ["role=gateway", f"hosts=[{places}]"]]
        script, self.servers = str(Path(__file__).with_name("faulty_server.py")), list[Server]()
        for number, role in enumerate(roles):
            self.clocks[number].write_text("0")
            url = f"redis://{self.to_valkey[number].name}/0"
            own = [f"store={store}", f"hydra.run.dir={folder}", f"changes={url}", "log_level=warning"]
            own += [f"events={url}"] if number == 3 else []
            faulty = (script, str(self.clocks[number]), plant)
            self.servers.append(Server(folder, ports[7 + number], *role, *own, script=faulty))
        *self.hosts, self.gateway = self.servers

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start everything, and end it."""
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.valkey.start()
        try:
            for proxy in (*self.to_valkey, *self.to_hosts):
                asyncio.run_coroutine_threadsafe(proxy.start(), self.loop).result()
            for server in self.servers:
                server.start()
            self.wait()
            yield
        finally:
            for server in self.servers:
                server.kill()
            self.valkey.close()

    def wait(self) -> None:
        """Return when every server is ready."""
        for server in self.servers:
            _wait_for(server, "/readyz")

    def kill_server(self, number: int, seconds: float) -> None:
        self.servers[number].kill()
        time.sleep(seconds / 4)
        self.servers[number].start()
        _wait_for(self.servers[number], "/healthz")

    def pause_server(self, number: int, seconds: float) -> None:
        self.servers[number].send(signal.SIGSTOP)
        time.sleep(seconds)
        self.servers[number].send(signal.SIGCONT)

    def step_clock(self, number: int, seconds: float) -> None:
        self.clocks[number].write_text(str(random.choice((-DAY, DAY))))
        time.sleep(seconds)
        self.clocks[number].write_text("0")

    def cut_from_valkey(self, number: int, seconds: float) -> None:
        self._cut(self.to_valkey[number], seconds)

    def cut_from_gateway(self, number: int, seconds: float) -> None:
        self._cut(self.to_hosts[number % 3], seconds)

    def _cut(self, proxy: Proxy, seconds: float) -> None:
        proxy.is_down = True
        self.loop.call_soon_threadsafe(proxy.cut)
        time.sleep(seconds)
        proxy.is_down = False

    def kill_valkey(self, number: int, seconds: float) -> None:  # noqa: ARG002
        self.valkey.kill()
        time.sleep(seconds / 4)
        self.valkey.start()

    def pause_valkey(self, number: int, seconds: float) -> None:  # noqa: ARG002
        self.valkey.send(signal.SIGSTOP)
        time.sleep(seconds)
        self.valkey.send(signal.SIGCONT)

    def config_set(self, number: int, seconds: float) -> None:
        name, wrong, right = (("appendfsync", "no", "always"), ("maxmemory-policy", "allkeys-lru", "noeviction"))[
            number % 2
        ]
        with contextlib.suppress(redis.RedisError):
            self.valkey.client.config_set(name, wrong)
        time.sleep(seconds)
        while True:
            with contextlib.suppress(redis.RedisError):
                self.valkey.client.config_set(name, right)
                return
            time.sleep(0.1)

    def full_disk(self, number: int, seconds: float) -> None:  # noqa: ARG002
        if not self.valkey.has_disk:
            return
        filler = self.valkey.folder / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                continue
        time.sleep(seconds)
        filler.unlink()
        # It ends if it cannot write what it promised to write.
        time.sleep(0.5)
        self.valkey.start()


def _wait_for(server: Server, path: str) -> None:
    """Return when a server answers with 200; one that ends, because Valkey does not answer, is started again."""
    while call(server.port, "GET", path)[0] != 200:
        if not server.is_running:
            server.start()
        time.sleep(0.1)


def break_things(fleet: Fleet, history: History, *, seed: int, ended: threading.Event) -> None:
    """Inject up to three faults at once, at most one in each place; mend all now and then."""
    choose, broken, lock, began = random.Random(seed), set[object](), threading.Lock(), time.monotonic()
    of_servers = [
        fleet.kill_server, fleet.pause_server, fleet.step_clock, fleet.cut_from_valkey, fleet.cut_from_gateway
    ]  # fmt: skip
    of_valkey = [fleet.kill_valkey, fleet.pause_valkey, fleet.config_set, fleet.full_disk]
    threads = list[threading.Thread]()

    def one(fault: Callable[[int, float], None], number: int, seconds: float, place: object) -> None:
        history.faults[fault.__name__] += 1
        fault(number, seconds)
        with lock:
            broken.discard(place)

    while not ended.wait(choose.uniform(0.5, 3)):
        if time.monotonic() - began > FAULT_SECONDS:
            while threads:
                threads.pop().join()
            fleet.wait()
            history.is_calm.set()
            ended.wait(CALM_SECONDS)
            history.is_calm.clear()
            began = time.monotonic()
        fault = choose.choice([*of_servers, *of_valkey])
        number, seconds = choose.randrange(4), choose.uniform(0.5, 6)
        place = "valkey" if fault in of_valkey else number
        with lock:
            if place in broken or len(broken) == 3:
                continue
            broken.add(place)
        threads.append(threading.Thread(target=one, args=(fault, number, seconds, place)))
        threads[-1].start()
    for thread in threads:
        thread.join()


def write(port: int, history: History, *, name: str, pause: float, ended: threading.Event) -> None:
    """Post events of one user after the other, and read them back."""
    number = 0
    while not ended.is_set():
        user, item = f"{name}/{number // EVENTS_PER_USER}", FIRST_ITEM + number
        event = {"user_id": user, "item_id": item, "timestamp": 1_600_000_000 + number}
        status, answer = call(port, "POST", "/v1/events", event)
        is_acknowledged = status == 200 and answer["dropped"] == 0
        history.add(Stored(user, item, time.monotonic(), is_acknowledged))
        history.count("events", status)
        number += 1
        began = time.monotonic()
        status, answer = call(port, "POST", "/v1/retrieve", {"user_id": user, "k": 1})
        history.count("reads", status)
        if status == 200:
            history.add(Read(user, began, frozenset(answer["unknown_items"]), answer.get("history_missing", False)))
        ended.wait(pause)


def ask(
    port: int,
    history: History,
    *,
    queries: list[list[dict[str, Any]]],
    seed: int,
    pause: float,
    ended: threading.Event,
) -> None:
    """Ask for items."""
    choose = random.Random(seed)
    while not ended.is_set():
        query, began = choose.randrange(len(queries)), time.monotonic()
        status, answer = call(port, "POST", "/v1/retrieve", {"history": queries[query], "k": K})
        history.count("queries", status)
        if status == 200:
            versions = tuple(answer[name] for name in ("version", "user_tower_version", "index_version"))
            items, scores = zip(*((one["item_id"], one["score"]) for one in answer["items"]), strict=True)
            history.add(Asked(query, began, time.monotonic(), versions, items, scores))
        ended.wait(pause)


def take_down(
    hosts: list[Server],
    history: History,
    *,
    items: list[int],
    pause: float,
    seed: int,
    ended: threading.Event,
) -> None:
    """Take one item after the other down, and repeat calls without an acknowledgement."""
    choose = random.Random(seed)
    for item in items:
        began, status = time.monotonic(), 0
        while status != 200 and not ended.is_set():
            status, _ = call(choose.choice(hosts).port, "POST", "/v1/admin/takedown", {"item_ids": [item]})
            history.count("takedowns", status)
            ended.wait(0.0 if status == 200 else 0.2)
        history.add(TakenDown(item, began, time.monotonic() if status == 200 else float("inf")))
        if ended.wait(choose.uniform(0, 2 * pause)):
            return


def roll(config: DictConfig, version: str, history: History, *, ended: threading.Event) -> None:
    """Roll out and back; what a fault stops is resumed, and the lock of a rollout that ended is taken."""
    while not ended.wait(1):
        for wanted in ("start", "rollback"):
            action = wanted
            while not ended.is_set():
                result, advice = "done", ""
                try:
                    options = OmegaConf.merge(config, {"action": action, "version": version})
                    assert isinstance(options, DictConfig)
                    run_action(options, Console(file=io.StringIO()))
                except UserError as error:
                    result, advice = "failed", str(error)
                with history.lock:
                    during = "calm" if history.is_calm.is_set() else "faults"
                    history.statuses[f"{action} {result} during {during}"] += 1
                if result == "done" and action != "unlock":
                    break
                action = next((one for one in ("unlock", "resume") if f"`{one}`" in advice), wanted)
                ended.wait(1)


def kept_events(url: str, users: list[str]) -> dict[str, frozenset[int]]:
    """Return the items of each user's events in the store."""
    store = ValkeyEvents(url)
    found = {user: frozenset(event.item_id for event in store.history(user)) for user in users}
    store.close()
    return found  # type: ignore[return-value]  # the ids that were posted


def measure(store: str, versions: list[str], folder: Path, given: argparse.Namespace) -> tuple[History, list[str]]:
    """Run the fleet, and return its history and what is wrong with it."""
    model, queries = find_model(store, versions, given.seed)
    ReleaseStore(store).set_alias("production", versions[0], why="serving_history")
    fleet, history, ended = Fleet(folder, store, plant=given.plant), History(), threading.Event()
    items = [int(item) for item in random.Random(given.seed).sample(list(model.items), len(model.items) // 2)]
    own = {"hosts": [host.name for host in fleet.hosts], "gateways": [fleet.gateway.name], "store": store}
    own |= {"admin_token": TOKEN, "state": f"{folder}/rollout.json", "wait": 0.2}
    rollout = OmegaConf.merge(OmegaConf.load(ROOT / "conf" / "rollout.yaml"), own)
    # So many that they last for the whole run.
    pause = max(2.0, 60 * given.minutes / len(items))
    port, jobs = fleet.gateway.port, list[tuple[Callable[..., None], tuple[Any, ...], dict[str, Any]]]()
    jobs += [(write, (port, history), {"name": f"writer{number}", "pause": given.pause}) for number in range(3)]
    jobs += [(ask, (port, history), {"queries": queries, "seed": number, "pause": given.pause}) for number in range(3)]
    jobs += [(take_down, (fleet.hosts, history), {"items": items, "pause": pause, "seed": given.seed})]
    jobs += [(roll, (rollout, versions[1], history), {})]
    jobs += [(break_things, (fleet, history), {"seed": given.seed})]
    with fleet.running():
        threads = [threading.Thread(target=job, args=args, kwargs=kw | {"ended": ended}) for job, args, kw in jobs]
        for thread in threads:
            thread.start()
        try:
            time.sleep(60 * given.minutes)
        finally:
            ended.set()
        for thread in threads:
            thread.join()
        fleet.wait()
        # What was acknowledged during the faults is still so after them.
        last = threading.Event()
        threading.Timer(5, last.set).start()
        ask(port, history, queries=queries, seed=given.seed, pause=given.pause, ended=last)
        kept = kept_events(f"redis://127.0.0.1:{fleet.valkey.port}/0", sorted({one.user for one in history.stored}))
    return history, check(history, model, kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--store", help="of releases; its alias `production` moves")
    parser.add_argument("--versions", nargs=2, help="two releases of the same items")
    parser.add_argument("--plant", choices=["none", "lost", "mixed", "stale"], default="none")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between two requests of a client")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if (given.store is None) != (given.versions is None):
        parser.error("--store and --versions V1 V2 belong together; without both, two small releases are made")
    # Ends like Ctrl-C: with the processes that it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if BINARY is None:
        raise SystemExit("no valkey-server or redis-server")
    with tempfile.TemporaryDirectory() as name:
        store, versions = given.store, given.versions
        if store is None:
            store, versions = make_releases(Path(name))
        history, wrong = measure(store, versions, Path(name), given)
    acknowledged = sum(one.is_acknowledged for one in history.stored)
    taken = sum(one.ended < float("inf") for one in history.taken_down)
    print(f"{acknowledged:,} events acknowledged of {len(history.stored):,}, {len(history.reads):,} reads back")
    versions = Counter(one.versions[0] for one in history.asked)
    print(f"{len(history.asked):,} answers ({', '.join(map(str, versions.values()))} by version), {taken} takedowns")
    for title, counts in (("answers", history.statuses), ("faults", history.faults)):
        print(f"{title}: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}")
    kinds = Counter(one.partition(":")[0] for one in wrong)
    print(f"{len(wrong)} contradictions {dict(kinds) or ''}", *wrong[:20], sep="\n  ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
