"""What `serving_faults.py` breaks: hosts and a gateway as processes, and a proxy before each host."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from recsys.serving.gateway.http_client import HTTPClient, NoAnswerError

ROOT = Path(__file__).parents[1]
TOKEN = "the-token-of-faults"
PATIENCE = 300.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at."""
    opened = [socket.socket() for _ in range(count)]
    for one in opened:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in opened]
    for one in opened:
        one.close()
    return ports


class Server:
    """A process of serve.py.

    Args:
        folder: for its log.
        port: that it listens at.
        options: overrides of serve.py.
        script: what runs in its place, with leading arguments.
    """

    def __init__(
        self, folder: Path, port: int, *options: str, script: Sequence[str] = (str(ROOT / "serve.py"),)
    ) -> None:
        self.folder, self.port, self.name = folder, port, f"127.0.0.1:{port}"
        self._command = [sys.executable, *script, f"port={port}", f"admin_token={TOKEN}", *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        with (self.folder / f"server{self.port}.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, cwd=self.folder, stdout=log, stderr=log)

    async def ready(self) -> None:
        """Wait until it says that it is."""
        pool = HTTPClient(("127.0.0.1", self.port))
        for _ in range(int(PATIENCE / 0.05)):
            try:
                if (await pool.request("GET", "/readyz", seconds=1.0))[0] == 200:
                    await pool.close()
                    return
            except NoAnswerError:
                pass
            if self._process is not None and self._process.poll() is not None:
                break
            await asyncio.sleep(0.05)
        raise SystemExit(f"{self.name} does not start; its log is {self.folder}/server{self.port}.log")

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Proxy:
    """Passes bytes between a port of its own and a server's; can cut, delay, and pass nothing while `is_down`.

    Args:
        port: that it listens at.
        target: port of the server.
    """

    def __init__(self, port: int, target: int) -> None:
        self.port, self.target, self.name = port, target, f"127.0.0.1:{port}"
        self.delay, self.is_down = 0.0, False
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """Pass no more."""
        if self._server is not None:
            self._server.close()
        self.cut()
        while self._writers:
            await asyncio.sleep(0.01)

    def cut(self) -> None:
        """Cut all connections, in the middle of whatever they carry."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_down:
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, server_writer}
        try:
            await asyncio.gather(self._pass(reader, server_writer), self._pass(server_reader, writer))
        finally:
            self._writers -= {writer, server_writer}

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            # What ends on one side ends on the other.
            writer.close()
