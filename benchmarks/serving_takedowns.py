"""Check that no item is shown after its takedown was acknowledged, while hosts join, restart and lose their disks.

    python benchmarks/serving_takedowns.py --store releases --takedowns 1000 --pause 0.2

Hosts run as processes and share a log of item updates on a Valkey server (needs redis-server or valkey-server). A
gateway sends requests to all of them. One item after the other is taken down at a random host; a call that gets no
answer, or 503, is repeated at another host. After each acknowledgement every host that is ready is searched for the
item, and the gateway too. Meanwhile hosts are killed (SIGKILL) and started again with an empty disk, at random, and one
joins later. `--pause` spreads the takedowns over more of these. Exits with 1 if a removed item was shown.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from fault_cluster import TOKEN, Server, free_ports
from serving_isolation import valkey

from recsys.release.manifest import ITEMS
from recsys.release.store import ReleaseStore

HEADERS = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}


def call(port: int, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Return status and answer; status 0 if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), HEADERS)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError):
        return 0, None
    finally:
        connection.close()


class Breaking(threading.Thread):
    """Kills a random host now and then, and starts it again with an empty disk."""

    def __init__(self, hosts: list[Server], seed: int) -> None:
        super().__init__()
        self._hosts, self._random, self.ended, self.kills = hosts, random.Random(seed), threading.Event(), 0

    def run(self) -> None:
        while not self.ended.wait(self._random.uniform(0.5, 3)):
            host = self._random.choice(self._hosts)
            host.kill()
            self.kills += 1
            self.ended.wait(self._random.uniform(0, 1))
            host.start()
            give_up = time.monotonic() + 120
            while time.monotonic() < give_up and call(host.port, "GET", "/readyz")[0] != 200:
                time.sleep(0.05)


def shown(port: int, search: dict[str, Any], item: Any) -> bool:
    """Return whether a host that is ready finds an item among all."""
    status, answer = call(port, "POST", "/v1/search", search)
    return status == 200 and item in answer["results"][0]["item_ids"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--release", default="production")
    parser.add_argument("--takedowns", type=int, default=1000)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two takedowns")
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    choose, (release, manifest) = random.Random(given.seed), ReleaseStore(given.store).open(given.release)
    known = pq.read_table(release / ITEMS)["item_id"].to_pylist()
    # More takedowns than items: ids that no release has are taken down too.
    kind = type(known[0])
    items = [*known[: len(known) // 2], *(kind(10**9 + number) for number in range(given.takedowns))][: given.takedowns]
    choose.shuffle(items)
    embedding = np.random.default_rng(given.seed).normal(size=(1, manifest.dim)).tolist()
    search = {"version": manifest.version, "embeddings": embedding, "k": min(1000, len(known))}
    wrong = refused = 0
    slowest = 0.0
    with tempfile.TemporaryDirectory() as name, valkey(Path(name)) as (url, _):
        folder, ports = Path(name), free_ports(given.hosts + 1)
        own = [f"store={given.store.resolve()}", f"changes={url}", "log_level=warning", f"hydra.run.dir={folder}"]
        hosts = [Server(folder, port, "role=host", f"release={given.release}", *own) for port in ports[:-1]]
        places = ",".join(f"http://{host.name}" for host in hosts)
        gateway = Server(folder, ports[-1], "role=gateway", f"hosts=[{places}]", f"events={url}", *own)
        for server in (*hosts[:-1], gateway):
            server.start()
        for server in (*hosts[:-1], gateway):
            while call(server.port, "GET", "/readyz")[0] != 200:
                time.sleep(0.05)
        breaking = Breaking(hosts, given.seed)
        breaking.start()
        try:
            for item in items:
                begin = time.monotonic()
                while call(choose.choice(hosts).port, "POST", "/v1/admin/takedown", {"item_ids": [item]})[0] != 200:
                    refused += 1
                    time.sleep(0.01)
                slowest = max(slowest, time.monotonic() - begin)
                time.sleep(given.pause)
                wrong += sum(shown(host.port, search, item) for host in hosts)
                status, answer = call(gateway.port, "POST", "/v1/retrieve", {"history": [], "k": search["k"]})
                wrong += status == 200 and any(one["item_id"] == item for one in answer["items"])
        finally:
            breaking.ended.set()
            breaking.join()
            for server in (*hosts, gateway):
                server.kill()
    print(f"{len(items)} takedowns, {breaking.kills} hosts killed and started with an empty disk")
    print(f"{refused} calls repeated, slowest acknowledgement {slowest:.1f} s; {wrong} times a removed item was shown")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
