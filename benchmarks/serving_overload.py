"""Goodput of a server at ten times the load that saturates it.

    python benchmarks/serving_overload.py --store releases --release production

`recsys serve` runs as a process. Connections ask POST /v1/retrieve without a pause and give up after a second: first as
many as saturate the server, then ten times as many, then the first number again. An answer counts if it is 200 within
the second. /healthz is asked on new connections meanwhile. The client needs a core of its own; on a shared one the
figures are lower. Takes about 20 s after the start of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from serving_process import serving

GIVE_UP_SECONDS = 1.0


async def ask(port: int, body: bytes) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    return await again(reader, writer, body), reader, writer


async def again(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> int:
    """Send a request on an open connection, and return the status of its answer."""
    writer.write(body)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(length)
    return int(head[9:12])


async def drive(port: int, body: bytes, connections: int, seconds: float) -> tuple[float, float, float]:
    """Return answers a second, p99 of accepted requests in ms, and refused requests a second."""
    accepted: list[float] = []
    refused = 0
    end = time.perf_counter() + seconds

    async def keep_asking() -> None:
        nonlocal refused
        opened = None
        while (begin := time.perf_counter()) < end:
            try:
                async with asyncio.timeout(GIVE_UP_SECONDS):
                    if opened is None:
                        status, *opened = await ask(port, body)
                    else:
                        status = await again(*opened, body)
            except (TimeoutError, OSError, asyncio.IncompleteReadError):
                if opened is not None:
                    opened[1].close()
                    opened = None
                refused += 1
                continue
            if status == 200:
                accepted.append(time.perf_counter() - begin)
            else:
                refused += 1
        if opened is not None:
            opened[1].close()

    await asyncio.gather(*(keep_asking() for _ in range(connections)))
    p99 = float(np.quantile(accepted, 0.99)) * 1000 if accepted else float("nan")
    return len(accepted) / seconds, p99, refused / seconds


async def healths(port: int, seconds: float) -> float:
    """Return the longest time of a request for /healthz in ms."""
    longest, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        _, _, writer = await ask(port, b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        writer.close()
        longest = max(longest, time.perf_counter() - begin)
        await asyncio.sleep(0.05)
    return longest * 1000


async def measure(port: int, connections: int, seconds: float) -> None:
    content = json.dumps({"k": 100}).encode()
    head = f"POST /v1/retrieve HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
    body = f"{head}\r\n\r\n".encode() + content
    await drive(port, body, connections, 1.0)
    print(f"{'':24} {'answers/s':>10} {'p99 ms':>8} {'refused/s':>10} {'/healthz ms':>12}")
    for name, number in (("saturated", connections), ("10 x", 10 * connections), ("saturated again", connections)):
        (rate, p99, refused), health = await asyncio.gather(drive(port, body, number, seconds), healths(port, seconds))
        print(f"{name:24} {rate:10.0f} {p99:8.1f} {refused:10.0f} {health:12.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--release", default="production")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        options = [f"store={given.store.resolve()}", f"release={given.release}"]
        options += [f"events={place / 'events.sqlite'}", f"changes={place / 'changes.journal'}"]
        with serving(place, *options) as (address, _):
            asyncio.run(measure(int(address.rpartition(":")[2]), given.connections, given.seconds))


if __name__ == "__main__":
    main()
