"""Check that a Valkey cluster loses no acknowledged event while its nodes and the gateways are killed.

    python benchmarks/serving_cluster_kills.py --store releases --release production --kills 100

Three nodes hold the events and the log of item updates of two gateways (`serve.py role=all`). One node or gateway after
the other is killed (SIGKILL) at a random moment and started again. Meanwhile clients post events, of users of their own
and of one that all share, and repeat at the other gateway what is not acknowledged; items are taken down; and slots
move from node to node. Exits with 1 if an acknowledged event or takedown is lost, an event is not used by a following
retrieve, or an answer says MOVED.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from fault_cluster import Server, free_ports
from redis import RedisCluster
from redis.crc import key_slot
from rich.progress import track
from serving_takedowns import call

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/helpers"))
from servers import BINARY, Cluster, running

from recsys.core.suppression import hash_of
from recsys.serving.events import open_store
from recsys.serving.host.item_updates import ItemUpdates

FIRST_ITEM, MAX_EVENTS = 10**12, 100_000
# Events and kills after which clients take new users: an answer names a hundred unknown items, a history has 256 kB.
EVENTS_PER_USER, KILLS_PER_USER = 50, 5


class Traffic:
    """Clients and their acknowledgements."""

    def __init__(self, gateways: list[Server]) -> None:
        self._gateways, self.ended, self.generation = gateways, threading.Event(), 0
        self.acknowledged: defaultdict[str, set[int]] = defaultdict(set)
        self.removed: list[int] = []
        self.repeated = self.moved = self.unseen = self.asked = 0

    def post(self, choose: random.Random, path: str, body: object) -> bool:
        """Return True when one of the gateways has acknowledged, False if the clients end before."""
        while not self.ended.is_set():
            status, answer = call(choose.choice(self._gateways).port, "POST", path, body)
            self.moved += "MOVED" in str(answer)
            if status == 200:
                return True
            self.repeated += 1
            time.sleep(0.02)
        return False

    def write(self, client: int) -> None:
        choose, number = random.Random(client), 0
        while not self.ended.is_set():
            number += 1
            users = [f"{client}/{number // EVENTS_PER_USER}", f"all/{self.generation}"]
            item = FIRST_ITEM * (client + 1) + number
            events = [{"user_id": user, "item_id": item, "timestamp": number} for user in users]
            if not self.post(choose, "/v1/events", events):
                return
            for user in users:
                self.acknowledged[user].add(item)
            status, answer = call(
                choose.choice(self._gateways).port, "POST", "/v1/retrieve", {"user_id": users[0], "k": 5}
            )
            if status == 200 and not answer.get("history_missing"):
                self.asked += 1
                self.unseen += item not in answer["unknown_items"]
            time.sleep(0.02)

    def take_down(self) -> None:
        choose, number = random.Random(-1), 0
        while not self.ended.wait(0.3):
            number += 1
            if self.post(choose, "/v1/admin/takedown", {"item_ids": [number]}):
                self.removed.append(number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("releases"))
    parser.add_argument("--release", default="production")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if BINARY is None:
        raise SystemExit("no valkey-server or redis-server; apt install valkey or redis-server")
    choose, kills, moves = random.Random(given.seed), [0, 0], 0
    with tempfile.TemporaryDirectory() as name, running(Cluster) as cluster:
        folder, nodes = Path(name), cluster.nodes
        own = [f"store={given.store.resolve()}", f"release={given.release}", f"events={cluster.url}",
               f"changes={cluster.url}", f"max_events={MAX_EVENTS}", f"samples.folder={folder}/samples",
               f"suppressed={folder}/suppressed", "log_level=warning", f"hydra.run.dir={folder}"]  # fmt: skip
        gateways = [Server(folder, port, "role=all", *own) for port in free_ports(given.gateways)]
        traffic = Traffic(gateways)
        threads = [threading.Thread(target=traffic.write, args=(client,)) for client in range(given.clients)]
        threads.append(threading.Thread(target=traffic.take_down))
        try:
            for gateway in gateways:
                gateway.start()
            for gateway in gateways:
                wait_ready(gateway)
            for thread in threads:
                thread.start()
            for number in track(range(given.kills), "kills"):
                traffic.generation = number // KILLS_PER_USER
                time.sleep(choose.uniform(0.1, 0.6))
                victim = choose.randrange(len(nodes) + given.gateways)
                kills[victim >= len(nodes)] += 1
                if victim < len(nodes):
                    nodes[victim].kill()
                    time.sleep(choose.uniform(0, 0.5))
                    nodes[victim].start()
                    cluster.wait()
                else:
                    gateway = gateways[victim - len(nodes)]
                    gateway.kill()
                    gateway.start()
                    wait_ready(gateway)
                if number % 5 == 4:
                    # Of the user whom all write to.
                    move(cluster, key_slot(hash_of(f"all/{traffic.generation}")[:4].encode()))
                    moves += 1
        finally:
            traffic.ended.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
            for gateway in gateways:
                gateway.kill()
        store: Any = open_store(cluster.url, MAX_EVENTS)
        held = {user: {event.item_id for event in store.history(user)} for user in traffic.acknowledged}
        lost = sum(len(items - held[user]) for user, items in traffic.acknowledged.items())
        updates = ItemUpdates(cluster.url)
        lost_takedowns = len(traffic.removed) - len(updates.removed_of(traffic.removed))
        updates.close()
    total = sum(map(len, traffic.acknowledged.values()))
    print(f"{kills[0]} kills of nodes, {kills[1]} of gateways, {moves} moved slots; {traffic.repeated} calls repeated")
    print(
        f"{total:,} acknowledged events: {lost} lost; {traffic.unseen} of {traffic.asked:,} retrieves did not use one"
    )
    print(f"{len(traffic.removed)} acknowledged takedowns: {lost_takedowns} lost; {traffic.moved} answers with MOVED")
    return 1 if lost or lost_takedowns or traffic.unseen or traffic.moved else 0


def move(cluster: Cluster, slot: int) -> None:
    """Move a slot with its keys to the next node."""
    reader: Any = RedisCluster("127.0.0.1", cluster.ports[0])
    here = cluster.ports.index(reader.nodes_manager.get_node_from_slot(slot).port)
    reader.close()
    clients, there = cluster.clients, (here + 1) % len(cluster.nodes)
    names = [client.cluster("MYID") for client in clients]
    clients[there].cluster("SETSLOT", slot, "IMPORTING", names[here])
    clients[here].cluster("SETSLOT", slot, "MIGRATING", names[there])
    while keys := clients[here].cluster("GETKEYSINSLOT", slot, 100):
        for key in keys:
            clients[here].execute_command("MIGRATE", "127.0.0.1", cluster.ports[there], key, 0, 5000)
    for number in (there, here, 3 - here - there):
        clients[number].cluster("SETSLOT", slot, "NODE", names[there])


def wait_ready(gateway: Server) -> None:
    end = time.monotonic() + 120
    while call(gateway.port, "GET", "/readyz")[0] != 200:
        if time.monotonic() > end:
            raise SystemExit(f"{gateway.name} is not ready; its log is {gateway.folder}/server{gateway.port}.log")
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
