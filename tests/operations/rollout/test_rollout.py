"""Rollouts switch host by host, and at every moment all hosts hold each version that one of them serves."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from rollouts import NEW, OLD, OLDEST, TOKEN, Server, World

from recsys.operations.rollout import actions, admin, lock
from recsys.operations.rollout.state import Rollout, RolloutStateFile


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for server in (*made.hosts, *made.gateways):
        server.stop()


def names(servers: list[Server]) -> list[str]:
    return [server.name for server in servers]


def test_an_upgrade_in_order(world: World) -> None:
    assert world.run("start", "version=candidate") == 0
    hosts, gateways = names(world.hosts), names(world.gateways)
    assert world.log == [
        *((host, "load", NEW) for host in hosts),
        *((gateway, "tower", NEW) for gateway in gateways),
        *((host, "serve", NEW) for host in hosts),
        *((gateway, "canary", NEW) for gateway in gateways),
        *((host, "unload", OLDEST) for host in hosts),
    ]
    assert world.serving() == [NEW] * 3
    assert [host.loaded for host in world.hosts] == [[OLD, NEW]] * 3
    assert world.store.aliases() == {"candidate": NEW, "previous": OLD, "production": NEW}
    assert world.state.read().is_finished
    world.log.clear()
    assert world.run("finish") == 0
    assert {what for _, what, _ in world.log} == {"tower", "canary"}
    assert f"{hosts[0]}: serve {NEW}: already done" in world.screen.getvalue()


def test_a_rollback_in_reverse_order(world: World) -> None:
    world.run("start", f"version='{NEW}'")
    world.log.clear()
    assert world.run("rollback") == 0
    hosts, gateways = names(world.hosts), names(world.gateways)
    assert world.log == [
        *((gateway, "canary", OLD) for gateway in gateways),
        *((gateway, "tower", OLD) for gateway in gateways),
        *((host, "serve", OLD) for host in reversed(hosts)),
    ]
    assert world.serving() == [OLD] * 3
    assert world.store.aliases()["production"] == OLD
    assert world.store.history()[-1]["why"] == f"rollback from {NEW}"
    assert "every host serves " + OLD in world.screen.getvalue()


def test_a_canary_goes_to_some_and_then_to_all(world: World) -> None:
    assert world.run("canary", f"version='{NEW}'", "share=0.1") == 0
    assert world.serving() == [OLD] * 3
    assert [gateway.canary for gateway in world.gateways] == [(NEW, 0.1)] * 2
    assert world.store.aliases()["production"] == OLD
    assert world.run("finish") == 0
    assert world.serving() == [NEW] * 3
    assert [gateway.canary for gateway in world.gateways] == [(NEW, 0.0)] * 2


def test_a_canary_is_rolled_back(world: World) -> None:
    world.run("canary", f"version='{NEW}'")
    assert world.run("rollback") == 0
    assert [gateway.canary for gateway in world.gateways] == [(OLD, 0.0)] * 2
    assert world.serving() == [OLD] * 3


def test_a_cycle_killed_at_any_step_continues(world: World) -> None:
    reached = set()
    for command, more in (("start", [f"version='{NEW}'"]), ("rollback", [])):
        for number in range(1, 15):
            for host in world.hosts:
                host.serving, host.loaded = (OLD, [OLDEST, OLD]) if command == "start" else (NEW, [OLD, NEW])
            for gateway in world.gateways:
                gateway.canary, gateway.loaded = (OLD, 0.0), [OLD, NEW]
            world.store.set_alias("production", OLD if command == "start" else NEW, why="test")
            if command == "start":
                world.state.path.unlink(missing_ok=True)
            else:
                world.state.write(_finished(world))
            world.log.clear()
            _interrupt_at(world, number)
            code = world.run(command, *more)
            world.at_call = lambda number: None  # noqa: ARG005
            reached.add((command, code))
            begun = list(world.log)
            if code:
                world.state.unpause()
                assert world.run("resume") == 0
            assert world.serving() == [NEW if command == "start" else OLD] * 3
            assert world.store.aliases()["production"] == (NEW if command == "start" else OLD)
            done = [entry for entry in world.log if entry[1] in ("serve", "unload") or entry[0] in names(world.hosts)]
            assert len(set(done)) == len(done), f"done twice after {begun}"
    assert reached == {("start", 130), ("start", 0), ("rollback", 130), ("rollback", 0)}


def _interrupt_at(world: World, number: int) -> None:
    """Ctrl-C in the process of the rollout when the servers have done so many calls."""

    def at_call(count: int) -> None:
        if count == number:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    world.at_call = at_call


def _finished(world: World) -> Rollout:
    hosts, gateways = names(world.hosts), names(world.gateways)
    return Rollout(
        version=NEW,
        previous=OLD,
        goal="all",
        share=0.05,
        hosts=hosts,
        gateways=gateways,
        model=None,
        store=str(world.store.root),
        alias_before=OLD,
        is_finished=True,
    )


def test_it_pauses_before_the_next_step(world: World) -> None:
    def at_call(count: int) -> None:
        # The second host serves the new version.
        if count == 7:
            assert world.run("pause") == 0

    world.at_call = at_call
    assert world.run("start", f"version='{NEW}'") == 0
    assert world.serving() == [NEW, NEW, OLD]
    assert "paused; `resume` continues the rollout" in world.screen.getvalue()
    assert world.run("status") == 0
    assert "goal: all, paused" in world.screen.getvalue()
    assert world.run("resume") == 0
    assert world.serving() == [NEW] * 3


def test_a_host_that_fails_its_self_check_stops_it(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.hosts[1].refuses = "load"
    assert world.run("start", f"version='{NEW}'") == 1
    said = capsys.readouterr().err
    assert f"{world.hosts[1].name}: /v1/admin/load was refused with status 400: the index does not find" in said
    assert "No host was switched to" in said
    assert world.serving() == [OLD] * 3
    assert world.run("start", f"version='{OLDEST}'") == 1
    assert "is under way; expected resume, finish or rollback" in capsys.readouterr().err
    world.hosts[1].refuses = None
    assert world.run("resume") == 0
    assert world.serving() == [NEW] * 3


def test_a_host_that_is_down_stops_an_upgrade_and_not_a_rollback(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.run("start", f"version='{NEW}'")
    down = world.hosts[1]
    down.stop()
    assert world.run("rollback") == 1
    assert [world.hosts[0].serving, world.hosts[2].serving] == [OLD, OLD]
    said = capsys.readouterr().err
    assert f"{down.name}: does not answer" in said
    assert "Everything else is rolled back" in said
    # It is started again, with the alias, that is the old version.
    world.hosts[1] = Server(world, "host", port=down.http.server_port)
    assert world.run("resume") == 0
    assert world.serving() == [OLD] * 3
    world.hosts[1].stop()
    assert world.run("start", f"version='{NEW}'") == 1
    assert "does not answer" in capsys.readouterr().err


def test_a_call_that_is_refused_for_a_moment_is_repeated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "TRY_EVERY", 0.01)
    for server in (world.hosts[0], world.gateways[1]):
        server.unavailable = 2
    assert world.run("start", f"version='{NEW}'") == 0
    assert world.serving() == [NEW] * 3


def test_a_host_that_was_started_again_meanwhile_is_loaded_again(world: World) -> None:
    def at_call(count: int) -> None:
        if count == 6:
            # The first host serves the new version; the third was started again.
            world.hosts[2].loaded = [OLD]

    world.at_call, world.is_watched = at_call, False
    assert world.run("start", f"version='{NEW}'") == 0
    assert world.serving() == [NEW] * 3
    assert world.log.count((world.hosts[2].name, "load", NEW)) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resume"], "there is no rollout yet"),
        (["pause"], "there is no rollout yet"),
        (["start"], "version: missing"),
        (["start", "version=candidat"], "did you mean 'candidate'"),
    ],
)
def test_impossible_actions_are_refused(
    world: World, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.run(*words) == 1
    assert message in capsys.readouterr().err
    assert world.log == []


def test_a_wrong_token_changes_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run("start", f"version='{NEW}'", token="guess") == 1
    assert "status 401: expected the token" in capsys.readouterr().err
    assert world.log == []


def test_one_process_at_a_time(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.run("start", f"version='{NEW}'")
    with FileLock(world.state.lock):
        assert world.run("rollback") == 1
    assert "another process is running its rollout" in capsys.readouterr().err
    assert world.serving() == [NEW] * 3


def test_another_rollout_of_the_same_hosts_is_refused_until_its_lock_is_taken(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.holder = "another rollout"
    assert world.run("start", "version=candidate") == 1
    assert world.log == []
    assert "ann@one has changed the versions since 9; wait" in capsys.readouterr().err
    # Another state file and another lock file change nothing.
    world.state = RolloutStateFile(world.state.path.with_name("other.json"))
    assert world.run("canary", "version=candidate") == 1
    assert world.holder == "another rollout"
    monkeypatch.setattr(actions, "RENEW_SECONDS", 0)
    assert world.run("unlock") == 0
    assert world.holder is None
    assert world.run("start", "version=candidate") == 0
    assert (world.serving(), world.holder) == ([NEW] * 3, None)


def test_a_rollout_that_lost_its_lock_stops_before_its_next_step(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.01)

    def at_call(count: int) -> None:
        if count == 2:
            world.holder = "another rollout"
            # The renewal notices it.
            renewal = next(one for one in threading.enumerate() if one.name == "rollout lock")
            renewal.join(60)

    world.at_call = at_call
    assert world.run("start", "version=candidate") == 1
    assert len(world.log) == 2
    assert "ann@one" in capsys.readouterr().err
    assert world.holder == "another rollout"


def test_a_lock_outlives_the_state_of_the_fleet_for_a_while_and_its_end_waits_for_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.01)
    places = [("127.0.0.1", host.http.server_port) for host in world.hosts]
    clients = [admin.AdminClient(place, TOKEN, patience=1.0) for place in places]
    with lock.HostLocks(clients, "a rollout") as locks:
        for host in world.hosts:
            host.unavailable = 10**6
        renewal = next(one for one in threading.enumerate() if one.name == "rollout lock")
        while world.hosts[2].unavailable > 10**6 - 3 and renewal.is_alive():
            time.sleep(0.01)
        locks.check()
        before = [host.unavailable for host in world.hosts]
    # One call of a renewal that was under way, and one that gives the lock back.
    assert all(number - host.unavailable <= 2 for number, host in zip(before, world.hosts, strict=True))


def test_an_answer_without_end_is_not_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "MOST_BYTES", 3)
    client = admin.AdminClient(("127.0.0.1", world.hosts[0].http.server_port), TOKEN, patience=0.0)
    with pytest.raises(admin.UnreachableError, match="answers with more than 3 bytes"):
        client.versions(None)


def test_status_without_a_rollout(world: World) -> None:
    world.hosts[2].stop()
    assert world.run("status") == 0
    shown = world.screen.getvalue()
    assert f"{world.hosts[0].name} │ {OLD} │ {OLDEST}, {OLD}" in shown
    assert "does not answer" in shown


def test_a_file_that_is_no_state_is_refused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.state.path.write_text("{}")
    assert world.run("resume") == 1
    assert "not the state of a rollout" in capsys.readouterr().err
