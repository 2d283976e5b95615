"""Isolation of clients: sockets, stores that hang and loads must harm nobody else.

    python benchmarks/serving_isolation.py --store releases
    python benchmarks/serving_isolation.py --store releases --sockets 20000 --pause 30

A client asks POST /v1/retrieve with a history of its own, one request after the other and ten on each connection, in
turn without and with each harm. The table has the ratio of its p99, and how many requests got no 200. Harms: half-open
sockets while they arrive and while they are held (silent, or with a part of the headers or of the body), SQLite locked
by another process, Valkey paused with SIGSTOP (needs redis-server or valkey-server), and a rollback while another
release is loaded, whose longest answer is printed. The store has two releases. Half-open sockets need as many open
files; a process of root raises its limit itself.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fault_cluster import TOKEN, free_ports
from rich.console import Console
from rich.table import Table
from serving_process import serving

from recsys.operations.rollout.admin import AdminClient
from recsys.release.store import ReleaseStore
from recsys.serving.gateway.remote_host import parse_address

BODY = json.dumps({"history": [], "k": 100})


class Asked(NamedTuple):
    """p99 in ms of the answers that are 200, and the number of others by status (0: none)."""

    p99: float
    missed: Counter[int]


def ask(port: int, *, until: Callable[[], bool]) -> Asked:
    """Send requests that need no store."""
    took, missed = list[float](), Counter[int]()
    while not until():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for _ in range(10):
            begin, status = time.perf_counter(), 0
            with suppress(OSError, http.client.HTTPException):
                connection.request("POST", "/v1/retrieve", BODY, {"content-type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            if status != 200:
                missed[status] += 1
                break
            took.append(time.perf_counter() - begin)
        connection.close()
    return Asked(float(np.quantile(took, 0.99)) * 1000 if took else float("inf"), missed)


def ask_for(port: int, seconds: float) -> Asked:
    end = time.perf_counter() + seconds
    return ask(port, until=lambda: time.perf_counter() > end)


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


def open_half(port: int, count: int, *, opened: Event, end: Event) -> None:
    """Hold connections that never send a whole request."""
    head = b"POST /v1/retrieve HTTP/1.1\r\nhost: a\r\n"
    kinds = [b"", head, head + b"content-length: 90\r\n\r\n{", head + b"x: " + b"y" * 5000]
    held = []
    for number in range(count):
        # Some thousands from one address, because each has only so many ports.
        one = socket.create_connection(("127.0.0.1", port), source_address=(f"127.0.1.{1 + number // 5000}", 0))
        one.sendall(kinds[number % len(kinds)])
        held.append(one)
    opened.set()
    end.wait()


def half_open(port: int, count: int, *, rounds: int) -> list[list[Asked]]:
    """Return for each round: without them, while they arrive, and while they are held."""
    found = []
    for _ in range(rounds):
        opened, end = multiprocessing.Event(), multiprocessing.Event()
        holder = multiprocessing.Process(target=open_half, args=(port, count), kwargs={"opened": opened, "end": end})
        asked = [ask_for(port, 5.0)]
        holder.start()
        asked.append(ask(port, until=lambda: opened.is_set() or not holder.is_alive()))  # noqa: B023  # called here
        if not opened.is_set():
            raise SystemExit("the half-open sockets could not be opened")
        asked.append(ask_for(port, 5.0))
        end.set()
        holder.join()
        found.append(asked)
    return found


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


def compare(
    port: int, seconds: float, *, rounds: int, harm: Callable[[], AbstractContextManager[None]]
) -> list[list[Asked]]:
    """Return for each round: without and with a harm."""
    found = []
    for _ in range(rounds):
        before = ask_for(port, min(seconds, 5.0))
        with harm():
            found.append([before, ask_for(port, seconds)])
    return found


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
    parser.add_argument("--harms", nargs="*", default=["sockets", "sqlite", "rollback", "valkey"])
    given = parser.parse_args()
    sockets = raise_open_files(given.sockets)
    table = Table("harm", "p99 without, ms", "p99 with, ms", "ratio", "not answered 200")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = [f"store={given.store.resolve()}", f"release={given.release}"]
        own += [f"admin_token={TOKEN}", f"limits.connections={sockets + 500}"]

        def add(harm: str, found: list[list[Asked]], place: int = 1) -> None:
            without, under = (np.array([one[at].p99 for one in found]) for at in (0, place))
            missed = sum((one[place].missed for one in found), Counter[int]())
            values = (np.median(without), np.median(under), np.median(under / without))
            said = ", ".join(f"{count} x {status}" for status, count in missed.items()) or "none"
            table.add_row(harm, *(f"{value:.2f}" for value in values), said)
            print(f"{harm}: {values[2]:.2f}, not answered 200: {said}", flush=True)

        with serving(folder, *own, f"events={folder / 'events.sqlite'}", f"changes={folder / 'changes.journal'}") as (
            address,
            _,
        ):
            port = int(address.rpartition(":")[2])
            ask_for(port, 1.0)
            if "sockets" in given.harms:
                found = half_open(port, sockets, rounds=given.rounds)
                add(f"{sockets:,} half-open sockets arrive", found)
                add(f"{sockets:,} half-open sockets", found, 2)
            if "sqlite" in given.harms:
                add(
                    f"SQLite locked for {given.pause:g} s",
                    compare(
                        port, given.pause, rounds=given.rounds, harm=lambda: locked(folder / "events.sqlite", port)
                    ),
                )
            if "rollback" in given.harms:
                took = rollback(port, ReleaseStore(given.store).versions()[:2], 10)
                print(f"serve during a load of another release, longest of 10: {took:.0f} ms")
        if "valkey" in given.harms:
            with (
                valkey(folder) as (url, server),
                serving(folder, *own, f"changes={url}", f"events={url}") as (
                    address,
                    _,
                ),
            ):
                port = int(address.rpartition(":")[2])
                ask_for(port, 1.0)
                add(
                    f"Valkey paused for {given.pause:g} s",
                    compare(port, given.pause, rounds=given.rounds, harm=lambda: paused(server, port)),
                )
    Console(width=120).print(table)


def raise_open_files(sockets: int) -> int:
    """Raise the limit of open files, and return how many sockets it allows."""
    wanted, hard = sockets + 1000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < wanted:
        with suppress(ValueError, PermissionError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return sockets
        sockets = hard - 1000
    resource.setrlimit(resource.RLIMIT_NOFILE, (sockets + 1000, hard))
    return sockets


if __name__ == "__main__":
    main()
