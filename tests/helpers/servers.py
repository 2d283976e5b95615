"""A real server of Valkey or Redis, or a cluster of three, where the machine has one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import redis

BINARY = shutil.which("valkey-server") or shutil.which("redis-server")
# Memory where there is some: what these tests kill are processes, not machines.
FAST = "/dev/shm" if os.path.isdir("/dev/shm") else None
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")

needs_server = pytest.mark.skipif(BINARY is None, reason="no valkey-server or redis-server (apt install redis-server)")


class Server:
    """A server of its own, behind a socket in `folder`; what it holds outlives its processes."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.url = f"unix://{folder}/socket"
        self._folder, self._settings = folder, settings or DURABLE
        self.start()

    def start(self) -> None:
        assert BINARY is not None
        listens = () if "--port" in self._settings else ("--port", "0")
        command = [BINARY, *listens, "--unixsocket", f"{self._folder}/socket", "--dir", str(self._folder)]
        with open(self._folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, "--save", "", *self._settings], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self.clients = [client] = [redis.Redis.from_url(self.url)]
        for _ in range(600):
            try:
                client.ping()
                break
            except redis.RedisError:
                assert self.process.poll() is None, (self._folder / "log").read_text()
                time.sleep(0.05)
        else:
            raise AssertionError("the server does not answer")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Cluster:
    """Three servers that share the keys, each of which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.nodes: list[Server] = []
        self.ports = self.free_ports(6)
        for number, (port, bus) in enumerate(zip(self.ports[:3], self.ports[3:], strict=True)):
            (folder / str(number)).mkdir()
            settings = ("--port", port, "--cluster-port", bus, "--bind", "127.0.0.1", "--cluster-enabled", "yes",
                        "--cluster-node-timeout", 15000, "--cluster-require-full-coverage", "no")  # fmt: skip
            self.nodes.append(Server(folder / str(number), *DURABLE, *map(str, settings)))
        self.url = "valkey-cluster://" + ",".join(f"127.0.0.1:{port}" for port in self.ports[:3])
        self.clients = [redis.Redis.from_url(node.url) for node in self.nodes]
        for number, client in enumerate(self.clients):
            first, last = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            if number:
                self.clients[0].execute_command("CLUSTER MEET", "127.0.0.1", self.ports[number], self.ports[3 + number])
        self.wait()

    @staticmethod
    def free_ports(count: int) -> list[int]:
        opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        ports = [one.getsockname()[1] for one in opened]
        for one in opened:
            one.close()
        return ports

    def wait(self) -> None:
        """Return when all nodes know that all slots are served."""
        for client in self.clients:
            for _ in range(3000):
                found = client.cluster("INFO")
                if found["cluster_state"] == "ok" and found["cluster_slots_ok"] == "16384":
                    break
                time.sleep(0.01)
            else:
                raise AssertionError("the nodes do not find each other")

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()


T = TypeVar("T", Server, Cluster)


@contextmanager
def running(kind: type[T]) -> Iterator[T]:
    """Run a server or a cluster in a folder of its own. Paths of sockets are short."""
    with tempfile.TemporaryDirectory(dir=FAST, prefix="events-") as folder:
        started = kind(Path(folder))
        try:
            yield started
        finally:
            started.kill()
