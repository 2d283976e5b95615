"""Compare the gateway's HTTP client with the one it had before, in alternating bursts.

    git show b78452d:src/recsys/serving/gateway/http_client.py > before.py
    python benchmarks/gateway_client.py --store releases --before before.py

A host runs as a process. A gateway in this process answers bursts of requests (history of 50 items, k = 100) from one
caller and from 32, with one client and then the other. The table has the CPU time of this process per request, since
the CPU bounds a gateway; the ratio is the throughput now over the throughput before.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import runpy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import uvloop
from rich.console import Console
from rich.table import Table
from serving_process import serving

from recsys.release.store import ReleaseStore
from recsys.serving.events import open_store
from recsys.serving.gateway.discovery import fixed_hosts
from recsys.serving.gateway.fleet import Fleet
from recsys.serving.gateway.gateway import Gateway
from recsys.serving.gateway.limits import Limits
from recsys.serving.gateway.remote_host import RemoteHost, parse_address
from recsys.serving.gateway.router import Router
from recsys.serving.gateway.tower_cache import TowerCache
from recsys.serving.host.releases import ReleaseCache
from recsys.serving.http.codec import encode
from recsys.serving.http.messages import RetrieveRequest
from recsys.serving.observability.metrics import Metrics


class Before:
    """The client of another revision, called as the present one."""

    def __init__(self, path: Path, address: tuple[str, int]) -> None:
        self._pool = runpy.run_path(str(path))["ConnectionPool"](address)

    async def request(self, method: str, path: str, *, seconds: float, body: bytes = b"") -> Any:
        return await self._pool.request(method, path, body, seconds)

    def give_up(self, reason: str) -> None:
        self._pool.give_up(reason)

    async def close(self) -> None:
        self._pool.close()


async def measure(store: Path, address: str, before: Path, rounds: int) -> Table:
    """Alternate bursts of both gateways."""
    folder, _ = ReleaseStore(store).open("production")
    ids = pq.read_table(folder / "items.parquet", columns=["item_id"])["item_id"].to_pylist()
    requests = [
        RetrieveRequest(history=[{"item_id": ids[(7 * u + j) % len(ids)]} for j in range(50)]) for u in range(100)
    ]
    gateways = {}
    for name in ("before", "now"):
        host = RemoteHost(parse_address(address))
        if name == "before":
            host._client = Before(before, parse_address(address))  # type: ignore[assignment]
        fleet = Fleet([fixed_hosts(host)])
        await fleet.start()
        events = open_store(str(Path(tempfile.mkdtemp()) / "events.sqlite"), 1000)
        gateways[name] = Gateway(
            Router(fleet), TowerCache(ReleaseCache(store)), events=events, limits=Limits(), metrics=Metrics()
        )
        await gateways[name].ready()

    async def burst(gateway: Gateway, count: int, callers: int) -> float:
        async def call(first: int) -> None:
            for number in range(count // callers):
                encode(await gateway.retrieve(requests[(first * 31 + number) % len(requests)]))

        begin = time.process_time()
        await asyncio.gather(*map(call, range(callers)))
        return (time.process_time() - begin) / count * 1e6

    table = Table("callers", "before, us", "now, us", "ratio")
    gc.disable()
    for callers, count in ((1, 40), (32, 320)):
        spent: dict[str, list[float]] = {"before": [], "now": []}
        for number in range(-1, rounds):
            for name in sorted(gateways, reverse=bool(number % 2)):
                took = await burst(gateways[name], count, callers)
                if number >= 0:
                    spent[name].append(took)
        old, new = (statistics.median(spent[name]) for name in ("before", "now"))
        table.add_row(str(callers), f"{old:.0f}", f"{new:.0f}", f"{old / new:.3f}")
    for gateway in gateways.values():
        await gateway.router.fleet.close()
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=16)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = ["role=host", "release=production", f"store={given.store.absolute()}", "monitor=0"]
        with serving(Path(folder), *options) as (address, _):
            table = uvloop.run(measure(given.store.absolute(), address, given.before, given.rounds))
    Console().print(table)


if __name__ == "__main__":
    main()
