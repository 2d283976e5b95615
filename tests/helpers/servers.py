"""A real server of Valkey or Redis, where the machine has one."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

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
        command = [BINARY, "--port", "0", "--unixsocket", f"{self._folder}/socket", "--dir", str(self._folder)]
        with open(self._folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, "--save", "", *self._settings], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        client = redis.Redis.from_url(self.url)
        for _ in range(600):
            try:
                client.ping()
                break
            except redis.RedisError:
                assert self.process.poll() is None, (self._folder / "log").read_text()
                time.sleep(0.05)
        else:
            raise AssertionError("the server does not answer")
        client.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
