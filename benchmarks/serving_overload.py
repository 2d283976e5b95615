"""Goodput of a server at ten times the load that saturates it.

    python benchmarks/serving_overload.py --store releases --release production

`recsys serve` runs as a process. Connections ask POST /v1/retrieve without a pause and give up after a second: first as
many as saturate the server, then ten times as many, then the first number again, and so on for some rounds. An answer
counts if it is 200 within the second. Another process asks for /healthz on new connections meanwhile. Ratios compare
phases of the same round, so a busy machine changes them little. On two cores or more the server runs on the first one
(`--pin`), and the clients on the others: on a shared core the clients would take what they measure. A round takes 12 s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table
from serving_process import serving

GIVE_UP_SECONDS = 1.0


class Phase(NamedTuple):
    """Figures of one load.

    Attributes:
        rate: answers a second.
        p99: of accepted requests, in ms.
        health: longest /healthz, in ms.
        refused: refused requests a second.
        cpu: CPU time of the server per answer, in ms; it depends little on what else the machine does.
    """

    rate: float
    p99: float
    health: float
    refused: float
    cpu: float


class _Connection(asyncio.Protocol):
    """Asks without a pause, and closes when an answer takes too long."""

    def __init__(self, request: bytes, end: float, accepted: list[float]) -> None:
        self._request, self._end, self._accepted = request, end, accepted
        self._received = b""
        self.refused = 0
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._late = asyncio.get_running_loop().call_later(GIVE_UP_SECONDS, self._transport.abort)
        self._ask()

    def _ask(self) -> None:
        self._begin = time.perf_counter()
        self._late.cancel()
        if self._begin > self._end:
            self._transport.close()
            return
        self._late = asyncio.get_running_loop().call_later(GIVE_UP_SECONDS, self._give_up)
        self._transport.write(self._request)

    def _give_up(self) -> None:
        self.refused += 1
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, body = self._received.partition(b"\r\n\r\n")
        if not blank or len(body) < int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]):
            return
        if head[9:12] == b"200":
            self._accepted.append(time.perf_counter() - self._begin)
        else:
            self.refused += 1
        self._received = b""
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._late.cancel()
        self.closed.set_result(None)


async def drive(port: int, request: bytes, connections: int, seconds: float) -> tuple[int, float, int]:
    """Return accepted requests, their p99 in ms, and refused requests."""
    accepted: list[float] = []
    end, loop = time.perf_counter() + seconds, asyncio.get_running_loop()

    async def keep_asking() -> int:
        refused = 0
        while time.perf_counter() < end:
            one = _Connection(request, end, accepted)
            try:
                await loop.create_connection(lambda one=one: one, "127.0.0.1", port)
                await one.closed
            except OSError:
                refused += 1
            refused += one.refused
        return refused

    refused = sum(await asyncio.gather(*(keep_asking() for _ in range(connections))))
    return len(accepted), float(np.quantile(accepted, 0.99)) * 1000 if accepted else float("nan"), refused


def probe(port: int, end: Event, longest: multiprocessing.Queue[float]) -> None:
    """Ask for /healthz until `end`, in a process of its own."""
    found = 0.0
    while not end.wait(0.05):
        begin = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port), timeout=60) as opened:
            opened.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
            while opened.recv(65536):
                pass
        found = max(found, time.perf_counter() - begin)
    longest.put(found * 1000)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(port: int, pid: int, *, request: bytes, connections: int, seconds: float) -> Phase:
    context = multiprocessing.get_context("fork")
    end, longest = context.Event(), context.Queue()
    prober = context.Process(target=probe, args=(port, end, longest))
    prober.start()
    spent = cpu_seconds(pid)
    accepted, p99, refused = uvloop.run(drive(port, request, connections, seconds))
    spent = cpu_seconds(pid) - spent
    end.set()
    health = longest.get()
    prober.join()
    return Phase(accepted / seconds, p99, health, refused / seconds, 1000 * spent / max(1, accepted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--release", default="production")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("option", nargs="*", help="further options of `recsys serve`, such as limits.queue_seconds=0.5")
    parser.add_argument("--pin", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    content = json.dumps({"k": 100}).encode()
    head = f"POST /v1/retrieve HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
    request = f"{head}\r\n\r\n".encode() + content
    cores = sorted(os.sched_getaffinity(0))
    table = Table("phase", "answers/s", "p99, ms", "/healthz, ms", "refused/s", "CPU/answer, ms")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        options = [
            f"store={given.store.resolve()}",
            f"release={given.release}",
            "limits.connections=20000",
            *given.option,
        ]
        options += [f"events={place / 'events.sqlite'}", f"changes={place / 'changes.journal'}"]
        with serving(place, *options) as (address, server):
            if given.pin and len(cores) > 1:
                for thread in os.listdir(f"/proc/{server.pid}/task"):
                    os.sched_setaffinity(int(thread), cores[:1])
                os.sched_setaffinity(0, cores[1:])
            port = int(address.rpartition(":")[2])
            uvloop.run(drive(port, request, given.connections, 1.0))
            rounds = []
            for _ in range(given.rounds):
                numbers = (given.connections, 10 * given.connections, given.connections)
                rounds.append(
                    [
                        measure(port, server.pid, request=request, connections=number, seconds=given.seconds)
                        for number in numbers
                    ]
                )
                for name, phase in zip(("saturated", "10 x", "saturated again"), rounds[-1], strict=True):
                    table.add_row(
                        name,
                        f"{phase.rate:.0f}",
                        f"{phase.p99:.1f}",
                        f"{phase.health:.1f}",
                        f"{phase.refused:.0f}",
                        f"{phase.cpu:.2f}",
                    )
    Console(width=100).print(table)
    goodput = [over.rate / statistics.mean((before.rate, after.rate)) for before, over, after in rounds]
    cheaper = [statistics.mean((before.cpu, after.cpu)) / over.cpu for before, over, after in rounds]
    slower = [over.p99 / statistics.mean((before.p99, after.p99)) for before, over, after in rounds]
    print(f"goodput / capacity by round: {', '.join(f'{ratio:.2f}' for ratio in goodput)}")
    print(f"the same by CPU time of the server: {', '.join(f'{ratio:.2f}' for ratio in cheaper)}")
    print(f"p99 of accepted / normal by round: {', '.join(f'{ratio:.1f}' for ratio in slower)}")
    print(f"longest /healthz at 10 x: {max(over.health for _, over, _ in rounds):.0f} ms")


if __name__ == "__main__":
    main()
