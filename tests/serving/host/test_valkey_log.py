"""The log of item updates on a server: one order for all hosts, and no change is acknowledged before all applied it."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from servers import Server, needs_server

from recsys.serving.host import valkey_log
from recsys.serving.host.additions import Additions
from recsys.serving.host.item_updates import ItemUpdates
from recsys.serving.http.problems import ServerFault

pytestmark = needs_server
Start = Callable[[str | None], ItemUpdates]
PATIENCE = 60.0


class Accepts:
    def check_additions(self, additions: Additions) -> list[int | str]:
        return [item["item_id"] for item in additions.items]


@pytest.fixture
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(valkey_log, "_WAIT_SECONDS", 0.05)
    running = request.getfixturevalue(getattr(request, "param", "server"))
    for client in running.clients:
        client.flushall()
    started: list[ItemUpdates] = []

    def one(name: str | None) -> ItemUpdates:
        started.append(ItemUpdates(running.url, name=name))
        return started[-1]

    yield one
    for updates in started:
        updates.close()


def add(updates: ItemUpdates, version: str, *items: int) -> None:
    embeddings = np.array([[number, -number] for number in items], np.float32)
    updates.add(Additions(version, [{"item_id": number} for number in items], embeddings), Accepts())


def until(holds: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(int(PATIENCE / 0.002)):
        if holds():
            return
        waiting.wait(0.002)
    raise AssertionError("it never holds")


@pytest.mark.parametrize("start", ["server", "cluster"], indirect=True)
def test_a_change_is_acknowledged_when_every_host_has_applied_it(start: Start) -> None:
    hosts = [start(f"host-{number}") for number in range(3)]
    for number in range(30):
        assert hosts[number % 3].take_down([number, -number]) == 1 + bool(number)
        for host in (*hosts, start(None)) if number % 10 == 0 else hosts:
            assert host.removed_of([number, 99]) == [number]
    # A host with an empty disk has read the log to its head before it answers.
    assert start("new").removed_of(range(40)) == list(range(30))
    add(hosts[0], "v1", 100, 101)
    assert hosts[2].not_added("v1", [100, 101, 102]) == [102]
    assert hosts[1].take_down([5]) == 0


def test_a_host_that_does_not_follow_delays_the_acknowledgement_until_it_is_gone(
    start: Start, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey_log, "CONFIRM_SECONDS", 0.05)
    here, cut_off = start("here"), start("cut off")
    # The other host cannot reach the server any more.
    cut_off._closed.set()
    cut_off._follower.join()
    with pytest.raises(ServerFault, match="not confirmed by cut off; repeat"):
        here.take_down([1])
    client = redis.Redis.from_url(server.url)
    assert 60_000 < int(client.pttl("recsys:changes:reader:cut off")) <= 75_000
    # It rests before its registration ends.
    monkeypatch.setattr(valkey_log, "REST_SECONDS", 0.0)
    with pytest.raises(ServerFault, match="not read for too long"):
        cut_off.removed_of([1])
    assert cut_off.fault() is not None
    monkeypatch.setattr(valkey_log, "REST_SECONDS", 60.0)
    client.delete("recsys:changes:reader:cut off")
    assert here.take_down([1]) == 0
    assert here.fault() is None


def test_nobody_waits_for_a_host_whose_port_is_closed(server: Server, start: Start) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        killed = valkey_log.ValkeyLog(server.url, "killed", listens=("127.0.0.1", port))
        # Bound, and not listening: it reads the log again before it answers.
        here = start("here")
        assert here.take_down([1]) == 1
        listening.listen()
        killed.read_new()
        killed.confirm()
        taking = threading.Thread(target=here.take_down, args=([2],))
        taking.start()
        until(lambda: here.removed_of([2]) == [2])
        assert taking.is_alive()
        killed.read_new()
        killed.confirm()
        taking.join(PATIENCE)
        assert not taking.is_alive()
    killed.close()


def test_a_paused_server_does_not_stop_hosts(fast_folder: Path) -> None:
    server = Server(fast_folder)
    updates = ItemUpdates(server.url, name="host")
    updates.take_down([1])
    server.process.send_signal(signal.SIGSTOP)
    assert updates.removed_of([1, 2]) == [1]
    assert updates.fault() is None
    server.process.send_signal(signal.SIGCONT)
    assert updates.take_down([2]) == 1
    # A server that restarts with its data is the same log.
    server.kill()
    server.start()
    until(lambda: ItemUpdates(server.url).removed_of([1, 2]) == [1, 2])
    assert updates.take_down([3]) == 1
    updates.close()
    server.kill()


@pytest.mark.parametrize("damage", ["emptied", "restored from before", "a record is gone"])
def test_a_log_that_lost_records_rests_its_hosts(start: Start, server: Server, damage: str) -> None:
    client = redis.Redis.from_url(server.url)
    host = start("host")
    host.take_down([1])
    before = {key: client.dump(key) for key in client.keys("recsys:changes:*")}
    host.take_down([2])
    if damage == "emptied":
        client.flushall()
    elif damage == "restored from before":
        for key, content in before.items():
            client.restore(key, 0, content, replace=True)
    else:
        client.incr("recsys:changes:head")
    until(lambda: host.fault() is not None)
    with pytest.raises(ServerFault):
        host.removed_of([1])


@pytest.mark.parametrize("start", ["server", "cluster"], indirect=True)
def test_a_year_of_changes_is_compacted(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey_log, "COMPACT_BYTES", 300)
    writer, reader = start("writer"), start("reader")
    for number in range(100):
        writer.take_down([number])
        add(writer, "v1", 1000 + number % 10)
    assert 0 < writer._log._client.xlen(writer._log._key("log")) < 40
    for updates in (writer, reader, start("new"), start(None)):
        assert updates.removed_of(range(-5, 200)) == list(range(100))
        _, _, new = updates.of("v1")
        assert sorted(one.item["item_id"] for one in new) == list(range(1000, 1010))
        assert all(one.embedding[0] == one.item["item_id"] for one in new)


@pytest.mark.parametrize("start", ["server", "cluster"], indirect=True)
def test_hosts_that_write_at_once_lose_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey_log, "COMPACT_BYTES", 300)
    hosts = [start(str(number)) for number in range(3)]

    def write(number: int) -> None:
        for item in range(20):
            hosts[number].take_down([100 * number + item])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = sorted(100 * number + item for number in range(3) for item in range(20))
    assert all(sorted(host.removed_of(range(300))) == expected for host in [*hosts, start(None)])


def test_nothing_is_written_while_the_server_may_lose_it(start: Start, server: Server) -> None:
    host, client = start("host"), redis.Redis.from_url(server.url)
    client.config_set("appendfsync", "no")
    try:
        with pytest.raises(ServerFault, match="appendfsync no"):
            host._log.check()
        with pytest.raises(ServerFault, match="would lose acknowledged item updates"):
            host.take_down([1])
    finally:
        client.config_set("appendfsync", "always")
    host._log.check()
    assert host.take_down([1]) == 1
