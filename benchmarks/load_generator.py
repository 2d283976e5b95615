"""Load on one address: wrk where it is installed, else a process of asyncio (which takes more of the machine itself).

python benchmarks/load_generator.py HOST PORT PATH BODIES CONNECTIONS SECONDS
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import numpy as np

# Every connection sends the next body as soon as the last answer is whole.
LUA = """
local requests, at = {}, 0
function init(args)
  local headers = {["Content-Type"] = "application/json"}
  for body in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("POST", nil, headers, body)
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('\\n[%d, %f, %f, %f, %d]\\n', summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class Load(NamedTuple):
    """What came of it.

    Attributes:
        answered: requests.
        seconds: that it took.
        p50, p99: latency in ms.
        errors: connections that failed, requests that timed out, and answers that were not 2xx.
    """

    answered: int
    seconds: float
    p50: float
    p99: float
    errors: int


def drive(url: str, bodies: Path, connections: int, seconds: int, scratch: Path) -> Load:
    """Keep so many connections busy for so long with POSTs of the lines of `bodies`, in turn."""
    if wrk := shutil.which("wrk"):
        script = scratch / "load.lua"
        script.write_text(LUA)
        command = [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script), url, "--"]
        command.append(str(bodies))
    else:
        parts = urlsplit(url)
        place = [str(parts.hostname), str(parts.port), parts.path]
        command = [sys.executable, __file__, *place, str(bodies), str(connections), str(seconds)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Load(*json.loads(output.splitlines()[-1]))


class _Connection(asyncio.Protocol):
    """Asks without a pause; reads no more of an answer than its status and its length."""

    def __init__(self, messages: Sequence[bytes], first: int, end: float, latencies: list[float]) -> None:
        self._messages, self._at, self._end, self._latencies = messages, first, end, latencies
        self._received = bytearray()
        self.errors = 0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        self._begin = time.perf_counter()
        if self._begin > self._end:
            self._transport.close()
            return
        self._transport.write(self._messages[self._at % len(self._messages)])
        self._at += 1

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, body = self._received.partition(b"\r\n\r\n")
        if not blank:
            return
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if len(body) < int(length):
            return
        self._latencies.append(time.perf_counter() - self._begin)
        self.errors += head.split(None, 2)[1] != b"200"
        self._received.clear()
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        # Whoever is cut off before the end got no answer.
        self.errors += time.perf_counter() < self._end
        self.closed.set_result(None)


async def generate(host: str, port: int, path: str, bodies: Sequence[bytes], connections: int, seconds: float) -> Load:
    """The load of this process."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    messages = [head.encode() % len(body) + body for body in bodies]
    latencies: list[float] = []
    loop, begin = asyncio.get_running_loop(), time.perf_counter()
    opened = []
    for number in range(connections):
        connection = _Connection(messages, number * len(messages) // connections, begin + seconds, latencies)
        await loop.create_connection(lambda made=connection: made, host, port)
        opened.append(connection)
    await asyncio.gather(*(connection.closed for connection in opened))
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    errors = sum(connection.errors for connection in opened)
    return Load(len(latencies), time.perf_counter() - begin, float(p50), float(p99), errors)


def main() -> None:
    import uvloop

    host, port, path, bodies, connections, seconds = sys.argv[1:]
    lines = Path(bodies).read_bytes().splitlines()
    print(json.dumps(uvloop.run(generate(host, int(port), path, lines, int(connections), float(seconds)))))


if __name__ == "__main__":
    main()
