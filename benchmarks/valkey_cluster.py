"""A Valkey or Redis cluster of three nodes, each of which can be killed and started again, for benchmarks."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from fault_cluster import free_ports

NODES, SLOTS = 3, 16384
DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


class Cluster:
    """Processes of the nodes, with their files in `folder`."""

    def __init__(self, folder: Path) -> None:
        binary = shutil.which("valkey-server") or shutil.which("redis-server")
        if binary is None:
            raise SystemExit("no valkey-server or redis-server; apt install valkey or redis-server")
        ports = free_ports(2 * NODES)
        self.ports, buses = ports[:NODES], ports[NODES:]
        self.url = "valkey-cluster://" + ",".join(f"127.0.0.1:{port}" for port in self.ports)
        self._commands = [
            [binary, "--port", str(port), "--cluster-port", str(bus), "--bind", "127.0.0.1",
             "--dir", str(folder / name), "--cluster-enabled", "yes", "--cluster-require-full-coverage", "no", *DURABLE]
            for name, port, bus in zip("abc", self.ports, buses, strict=True)
        ]  # fmt: skip
        for name in "abc":
            (folder / name).mkdir()
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * NODES
        self.clients: list[Any] = [redis.Redis(port=port, decode_responses=True) for port in self.ports]
        for number, client in enumerate(self.clients):
            self.start(number)
            client.execute_command("CLUSTER ADDSLOTSRANGE", SLOTS * number // NODES, SLOTS * (number + 1) // NODES - 1)
            self.clients[0].execute_command("CLUSTER MEET", "127.0.0.1", self.ports[number], buses[number])
        self.wait()
        self.names: list[str] = [client.cluster("MYID") for client in self.clients]

    def start(self, number: int) -> None:
        self._processes[number] = subprocess.Popen(self._commands[number], stdout=subprocess.DEVNULL)
        while True:
            try:
                self.clients[number].ping()
                return
            except redis.RedisError:
                time.sleep(0.01)

    def kill(self, number: int) -> None:
        process = self._processes[number]
        if process is not None:
            process.kill()
            process.wait()

    def wait(self) -> None:
        """Return when all nodes know that all slots are served."""
        for client in self.clients:
            while True:
                found = client.cluster("INFO")
                if (found["cluster_state"], found["cluster_slots_ok"]) == ("ok", str(SLOTS)):
                    break
                time.sleep(0.02)

    def move(self, slot: int) -> None:
        """Move a slot with its keys to the next node."""
        here = next(n for n, client in enumerate(self.clients) if self._owns(client, n, slot))
        there = (here + 1) % NODES
        self.clients[there].cluster("SETSLOT", slot, "IMPORTING", self.names[here])
        self.clients[here].cluster("SETSLOT", slot, "MIGRATING", self.names[there])
        while keys := self.clients[here].cluster("GETKEYSINSLOT", slot, 100):
            for key in keys:
                self.clients[here].execute_command("MIGRATE", "127.0.0.1", self.ports[there], key, 0, 5000)
        for number in (there, here, 3 - here - there):
            self.clients[number].cluster("SETSLOT", slot, "NODE", self.names[there])

    def _owns(self, client: Any, number: int, slot: int) -> bool:
        shards: Any = client.execute_command("CLUSTER SLOTS")
        rows = shards.items() if isinstance(shards, dict) else [((row[0], row[1]), row[2]) for row in shards]
        for (first, last), owner in rows:
            port = owner["primary"][1] if isinstance(owner, dict) else owner[1]
            if int(first) <= slot <= int(last) and int(port) == self.ports[number]:
                return True
        return False


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Run a cluster."""
    running = Cluster(folder)
    try:
        yield running
    finally:
        for number in range(NODES):
            running.kill(number)
