"""A cluster loses nothing: its nodes are killed, its slots move, its settings change."""

from __future__ import annotations

import asyncio
import importlib
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from publishing import Published
from redis.crc import key_slot
from servers import DURABLE, Cluster, Server, needs_server, running

from recsys.core.errors import UserError
from recsys.serving.events import Event, StoreError, open_store
from recsys.serving.events.event_store import PartlyReadError
from recsys.serving.events.valkey import ValkeyEvents
from recsys.serving.gateway.stored_users import StoredUsers
from recsys.serving.observability.metrics import Metrics

pytestmark = needs_server
ROOT = Path(__file__).parents[3]
USERS = [f"user-{number}" for number in range(6)]


@pytest.fixture(scope="module")
def own() -> Iterator[Cluster]:
    with running(Cluster) as started:
        yield started


def test_killed_nodes_lose_nothing(own: Cluster) -> None:
    store = open_store(own.url, 100_000)
    acknowledged: dict[str, list[int]] = {user: [] for user in USERS}
    failed: list[str] = []
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            user = USERS[number % len(USERS)]
            try:
                store.append([(user, Event(number, number)), ("all", Event(number, number))])
                acknowledged[user].append(number)
            except StoreError as error:
                failed.append(str(error))
                time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            before = sum(map(len, acknowledged.values()))
            while sum(map(len, acknowledged.values())) < before + 5:
                time.sleep(0.005)
            node = own.nodes[number]
            node.kill()
            time.sleep(random.uniform(0, 0.02))
            node.start()
            own.wait()
    finally:
        stop.set()
        writer.join()
    assert failed
    assert not [error for error in failed if "MOVED" in error]
    for user, numbers in acknowledged.items():
        assert {event.item_id for event in store.history(user)} >= set(numbers)
        assert {event.item_id for event in store.history("all")} >= set(numbers)
    store.close()


def test_a_node_that_is_down_costs_its_own_users_alone(own: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(own.url, 10)
    users = [f"down-{number}" for number in range(20)]
    store.append([(user, Event(1, 1)) for user in users])
    own.nodes[0].kill()
    try:
        # It cannot lose anything now, so the gateways stay ready, and new ones can start.
        store.check()
        open_store(own.url).close()
        with pytest.raises(PartlyReadError) as failed:
            store.histories(users)
        found = {user: history for user, history in zip(users, failed.value.histories, strict=True) if history}
        assert 0 < len(found) < len(users)
        alive = next(iter(found))
        assert store.append([(alive, Event(2, 2))]) == ["stored"]
        reader = StoredUsers(store, Metrics(), clock=lambda: 0.0)
        stored = asyncio.run(reader.all_of(users, profiled=False))
        assert {user for user, one in zip(users, stored, strict=True) if not one.is_missing} == found.keys()
        # A request of one such user does not let the others go without their histories.
        of_node = next(user for user in users if user not in found)
        (one,), (other,) = (asyncio.run(reader.all_of([user], profiled=False)) for user in (of_node, alive))
        assert (one.is_missing, other.is_missing) == (True, False)
        assert caplog.text.count("some requests are answered without stored histories") == 1
        with pytest.raises(StoreError):
            store.append([(user, Event(2, 2)) for user in users])
    finally:
        own.nodes[0].start()
        own.wait()
    assert all(store.histories(users))
    store.close()


def test_a_slot_that_moves_is_followed(own: Cluster) -> None:
    store = ValkeyEvents(own.url, 10, prefix="moved")
    store.append([(user, Event(1, 1)) for user in USERS])
    key = store._keys.key("history", USERS[0])
    slot, ids = key_slot(key.encode()), [client.cluster("MYID") for client in own.clients]
    here = own.ports.index(store._client.get_node_from_key(key).port)
    there = (here + 1) % 3
    own.clients[there].cluster("SETSLOT", slot, "IMPORTING", ids[here])
    own.clients[here].cluster("SETSLOT", slot, "MIGRATING", ids[there])
    # While the slot is on its way it is read, and a write waits.
    assert all(len(history) == 1 for history in store.histories(USERS))
    writing = threading.Thread(target=store.append, args=([(user, Event(2, 2)) for user in USERS],))
    writing.start()
    for name in own.clients[here].execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
        own.clients[here].execute_command("MIGRATE", "127.0.0.1", own.ports[there], name, 0, 5000)
    assert all(history for history in store.histories(USERS))
    for number in (there, here, 3 - there - here):
        own.clients[number].cluster("SETSLOT", slot, "NODE", ids[there])
    writing.join()
    store.append([(user, Event(3, 3)) for user in USERS])
    assert all(len(history) == 3 for history in store.histories(USERS))
    store.close()


def test_nothing_is_written_while_one_node_may_lose_it(own: Cluster) -> None:
    store = open_store(own.url, 10)
    own.clients[1].config_set("appendfsync", "everysec")
    try:
        for call in (store.check, lambda: store.append([(user, Event(9, 10**9)) for user in USERS])):
            with pytest.raises(StoreError, match="would lose acknowledged events, found appendfsync everysec"):
                call()
        with pytest.raises(UserError, match="appendfsync everysec"):
            open_store(own.url)
    finally:
        own.clients[1].config_set("appendfsync", "always")
    store.check()
    assert store.append([(USERS[0], Event(9, 10**9))]) == ["stored"]
    store.close()


def test_a_replica_that_may_take_over_is_refused(own: Cluster, fast_folder: Path) -> None:
    store = open_store(own.url)
    ports = Cluster.free_ports(2)
    replica = Server(fast_folder, *DURABLE, "--bind", "127.0.0.1", "--port", str(ports[0]), "--cluster-port",
                     str(ports[1]), "--cluster-enabled", "yes")  # fmt: skip
    client = replica.clients[0]
    try:
        for one in (*own.clients, client):
            # Nodes tell each other news in half of this time.
            one.config_set("cluster-node-timeout", 3000)
        client.cluster("MEET", "127.0.0.1", own.ports[0], own.ports[3])
        name = own.clients[0].execute_command("CLUSTER MYID")
        for _ in range(1000):
            try:
                client.cluster("REPLICATE", name)
                break
            except redis.ResponseError:
                time.sleep(0.02)
        while not all(str(ports[0]) in str(one.execute_command("CLUSTER SLOTS")) for one in own.clients):
            time.sleep(0.02)
        message = f"if 127.0.0.1:{ports[0]} replaced its primary, .*no-failover yes"
        with pytest.raises(UserError, match=message):
            open_store(own.url)
        # A store that was open before notices it.
        for call in (store.check, lambda: store.append([(USERS[1], Event(10, 10**9))])):
            with pytest.raises(StoreError, match=message):
                call()
        client.config_set("cluster-replica-no-failover", "yes")
        store.check()
        assert store.append([(USERS[1], Event(10, 10**9))]) == ["stored"]
        store.close()
    finally:
        replica.kill()


@pytest.mark.parametrize("error", [redis.ConnectionError, redis.TimeoutError])
def test_a_silent_replica_costs_nothing(own: Cluster, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    store = ValkeyEvents(own.url, 10)
    client = store._server.client
    monkeypatch.setattr(client, "get_replicas", lambda: ["replica"])
    connection_of = client.get_redis_connection

    def connect(node: Any) -> Any:
        if node == "replica":
            raise error
        return connection_of(node)

    monkeypatch.setattr(client, "get_redis_connection", connect)
    store.check()
    store.close()


@pytest.mark.parametrize("place", ["valkey-cluster://a", "valkey-cluster://a:1,b", "valkey-cluster://a:1,:2"])
def test_a_list_of_nodes_without_ports_is_refused(place: str) -> None:
    with pytest.raises(UserError, match="expected HOST:PORT,HOST:PORT"):
        open_store(place)


def test_a_server_that_is_no_cluster_is_refused(fast_folder: Path) -> None:
    (port,) = Cluster.free_ports(1)
    server = Server(fast_folder, *DURABLE, "--port", str(port))
    try:
        with pytest.raises(StoreError, match="Cluster mode is not enabled"):
            open_store(f"valkey-cluster://127.0.0.1:{port}")
    finally:
        server.kill()


def test_the_benchmark_of_kills(
    published: Published, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("serving_cluster_kills")
    # The first of this seed kills a node.
    words = f"--store {published.store} --release {published.versions[0]} --kills 1 --clients 1 --gateways 1 --seed 1"
    monkeypatch.setattr("sys.argv", ["serving_cluster_kills.py", *words.split()])
    assert benchmark.main() == 0
    assert "1 kills of nodes, 0 of gateways" in capsys.readouterr().out


def test_the_benchmark_of_bytes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("event_bytes")
    monkeypatch.setattr("sys.argv", ["event_bytes.py", "--held", "200", "--events", "30", "--users", "2"])
    benchmark.main()
    found = re.search(r"server: ([0-9,]+) bytes an event", capsys.readouterr().out)
    assert found is not None
    # The history has 7,500.
    assert int(found[1].replace(",", "")) < 500
