"""Isolation of clients: sockets, stores that hang and loads must harm nobody else.

    python benchmarks/serving_isolation.py --store releases
    python benchmarks/serving_isolation.py --store releases --sockets 20000 --pause 30

A client asks POST /v1/retrieve with a history of its own, one request after the other, in turn without and with each
harm, and the table has the ratio of its p99. Harms: half-open sockets (half of them silent, half with the begin of a
request), SQLite locked by another process, Valkey paused with SIGSTOP (needs redis-server or valkey-server), and a
rollback while another release is loaded, whose longest answer is printed. The store has two releases. With fewer open
files allowed (`ulimit -Hn`) there are fewer sockets.
"""

from __future__ import annotations

import argparse
import http.client
import json
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from fault_cluster import TOKEN, free_ports
from rich.console import Console
from rich.table import Table
from serving_process import serving

from recsys.operations.rollout.admin import AdminClient
from recsys.release.store import ReleaseStore
from recsys.serving.gateway.remote_host import parse_address

BODY = json.dumps({"history": [], "k": 100})


def p99(port: int, seconds: float) -> float:
    """Return the p99 in ms of requests that need no store."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    took, end = [], time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        connection.request("POST", "/v1/retrieve", BODY, {"content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise SystemExit(f"/v1/retrieve was answered with {answer.status}: {content.decode()}")
        took.append(time.perf_counter() - begin)
    connection.close()
    return float(np.quantile(took, 0.99)) * 1000


@contextmanager
def keep_asking(port: int, path: str, body: object) -> Iterator[None]:
    """Send requests that need the store, from four threads."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
                connection.getresponse().read()
            except OSError:
                pass
            connection.close()
            ended.wait(0.05)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    yield
    ended.set()
    for thread in threads:
        thread.join()


@contextmanager
def half_open(port: int, count: int) -> Iterator[None]:
    """Hold connections that never send a whole request."""
    opened = []
    for number in range(count):
        one = socket.create_connection(("127.0.0.1", port))
        if number % 2:
            one.sendall(b"POST /v1/retrieve HTTP/1.1\r\nhost: a\r\n")
        opened.append(one)
    yield
    for one in opened:
        one.close()


@contextmanager
def locked(path: Path, port: int) -> Iterator[None]:
    with sqlite3.connect(path) as writer, keep_asking(port, "/v1/events", {"user_id": 1, "item_id": 1}):
        writer.execute("BEGIN EXCLUSIVE")
        yield
        writer.execute("ROLLBACK")


@contextmanager
def paused(server: subprocess.Popen[bytes], port: int) -> Iterator[None]:
    with keep_asking(port, "/v1/retrieve", {"user_id": 1}):
        server.send_signal(signal.SIGSTOP)
        yield
        server.send_signal(signal.SIGCONT)


@contextmanager
def valkey(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a server with durable settings."""
    binary = shutil.which("valkey-server") or shutil.which("redis-server")
    if binary is None:
        raise SystemExit("no valkey-server or redis-server")
    (port,) = free_ports(1)
    durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), *durable]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    time.sleep(0.5)
    try:
        yield f"redis://127.0.0.1:{port}/0", server
    finally:
        server.send_signal(signal.SIGCONT)
        server.terminate()
        server.wait()


def compare(port: int, seconds: float, *, rounds: int, harm: Callable[[], object]) -> tuple[float, float, float]:
    """Return the median p99 without and with a harm, in turn, and the median of the ratios."""
    found = []
    for _ in range(rounds):
        before = p99(port, min(seconds, 5.0))
        with harm():  # type: ignore[attr-defined]  # a context
            found.append((before, p99(port, seconds)))
    without, under = np.array(found).T
    return float(np.median(without)), float(np.median(under)), float(np.median(under / without))


def rollback(port: int, versions: list[str], rounds: int) -> float:
    """Return the longest time in ms until a host serves the version before, while it loads another one."""
    client = AdminClient(parse_address(f"127.0.0.1:{port}"), TOKEN)
    longest = 0.0
    client.load(versions[0], None)
    for _ in range(rounds):
        client.serve(versions[0], None)
        if versions[1] in client.versions(None).loaded:
            client.unload(versions[1], None)
        loading = threading.Thread(target=client.load, args=(versions[1], None))
        loading.start()
        time.sleep(0.01)
        begin = time.perf_counter()
        client.serve(versions[0], None)
        longest = max(longest, time.perf_counter() - begin)
        loading.join()
    return longest * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--release", default="production")
    parser.add_argument("--sockets", type=int, default=20_000)
    parser.add_argument("--pause", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    sockets = given.sockets if hard == resource.RLIM_INFINITY else min(given.sockets, hard - 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    table = Table("harm", "p99 without, ms", "p99 with, ms", "ratio")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = [f"store={given.store.resolve()}", f"release={given.release}"]
        own += [f"admin_token={TOKEN}", f"limits.connections={hard}"]

        def add(harm: str, found: tuple[float, float, float]) -> None:
            table.add_row(harm, *(f"{value:.2f}" for value in found))
            print(f"{harm}: {found[2]:.2f}", flush=True)

        with serving(folder, *own, f"events={folder / 'events.sqlite'}", f"changes={folder / 'changes.journal'}") as (
            address,
            _,
        ):
            port = int(address.rpartition(":")[2])
            p99(port, 1.0)
            add(
                f"{sockets:,} half-open sockets",
                compare(port, 8.0, rounds=given.rounds, harm=lambda: half_open(port, sockets)),
            )
            add(
                f"SQLite locked for {given.pause:g} s",
                compare(port, given.pause, rounds=given.rounds, harm=lambda: locked(folder / "events.sqlite", port)),
            )
            took = rollback(port, ReleaseStore(given.store).versions()[:2], 10)
        with valkey(folder) as (url, server), serving(folder, *own, f"changes={url}", f"events={url}") as (address, _):
            port = int(address.rpartition(":")[2])
            p99(port, 1.0)
            add(
                f"Valkey paused for {given.pause:g} s",
                compare(port, given.pause, rounds=given.rounds, harm=lambda: paused(server, port)),
            )
    Console(width=100).print(table)
    print(f"serve during a load of another release, longest of 10: {took:.0f} ms")


if __name__ == "__main__":
    main()
