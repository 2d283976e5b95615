"""Hosts without a release that answer over real sockets, and fail when a test says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from recsys.serving.gateway.remote_host import RemoteHost
from recsys.serving.http.messages import SearchRequest


def embedding(version: str, user: int) -> list[float]:
    """Return the embedding of a user by the tower of a version; items found with another version's embedding differ."""
    return [float(int(version[1:])), float(user)]


def request(version: str, *users: int, k: int = 2) -> SearchRequest:
    return SearchRequest(version, np.array([embedding(version, user) for user in users], np.float32), k)


def items(version: str, user: int, k: int = 2) -> list[str]:
    """Return the items that a search of this version must find for a user."""
    return [f"{version}-{version}-{user}-{rank}" for rank in range(k)]


class FakeHost:
    """One model, `m`; items of a result are named by the versions of index and embedding."""

    def __init__(self, serving: str | None = "v1", loaded: Sequence[str] = ("v1",), shard: str | None = None) -> None:
        self.serving, self.loaded, self.shard = serving, list(loaded), shard
        self.requests: list[str] = []
        # Faults: requests wait for `running`; the next `cut` searches are cut; `instead` replaces every answer.
        self.running = asyncio.Event()
        self.running.set()
        self.cut = 0
        # The search with this number waits for `released`.
        self.holds: int | None = None
        self.released = asyncio.Event()
        self.instead: tuple[int, Any] | None = None
        self.claims: str | None = None
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    def client(self, **options: float) -> RemoteHost:
        return RemoteHost(("127.0.0.1", self.port), **options)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close everything at once, as the kernel does for a killed process."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    def cut_idle(self) -> None:
        """Close all connections, as servers do with idle ones."""
        for writer in list(self._writers):
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = head.split(" ", 2)
                length = next(
                    int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length")
                )
                body = await reader.readexactly(length)
                self.requests.append(path)
                await self.running.wait()
                if path == "/v1/search" and self.requests.count(path) == self.holds:
                    await self.released.wait()
                if path == "/v1/search" and self.cut:
                    self.cut -= 1
                    writer.transport.abort()
                    return
                status, answer = self._answer(path, body)
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(content), content))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def _answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/v1/version":
            held = {"serving": self.serving, "loaded": self.loaded}
            return 200, {"m": held if self.shard is None else held | {"shard": self.shard}}
        if self.instead is not None:
            return self.instead
        asked = json.loads(body)
        version = asked["version"]
        if version not in self.loaded:
            error = {"code": "version_not_held", "message": f"version: found {version}"}
            return 409, {"error": error, "serving": self.serving, "loaded": self.loaded}
        results = []
        for made_by, user in asked["embeddings"]:
            ids = [f"{version}-v{int(made_by)}-{int(user)}-{rank}" for rank in range(asked["k"])]
            results.append({"item_ids": ids, "scores": [1.0 / (1 + rank) for rank in range(asked["k"])]})
        return 200, {"version": self.claims or version, "results": results}


@asynccontextmanager
async def running(*hosts: FakeHost) -> AsyncIterator[None]:
    for host in hosts:
        await host.start()
    try:
        yield
    finally:
        for host in hosts:
            host.running.set()
            host.released.set()
            await host.stop()
