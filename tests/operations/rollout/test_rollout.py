"""Rollouts switch host by host, and at every moment all hosts hold each version that one of them serves."""

from __future__ import annotations

import io
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console

from recsys.cli.commands import COMMANDS
from recsys.cli.entry import with_keys
from recsys.core.errors import UserError
from recsys.experiments.compose import compose_command
from recsys.operations.rollout import actions, lock
from recsys.operations.rollout.actions import run_action
from recsys.operations.rollout.state import Rollout, RolloutStateFile
from recsys.release.store import ReleaseStore

OLDEST, OLD, NEW = "0" * 16, "a" * 16, "b" * 16
TOKEN = "secret-of-the-tests"


class Server:
    """A fake host or gateway for rollouts."""

    def __init__(self, world: World, kind: str, port: int = 0) -> None:
        self.world, self.kind = world, kind
        self.serving, self.loaded, self.canary = OLD, [OLDEST, OLD], (OLD, 0.0)
        self.refuses: str | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                held = {"serving": server.serving, "loaded": server.loaded}
                self.reply(200, {"m": held})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    self.reply(401, {"error": {"code": "unauthorized", "message": "expected the token"}})
                    return
                self.reply(*server.change(self.path.removeprefix("/v1/admin/"), body))

            def reply(self, status: int, message: Any) -> None:
                content = json.dumps(message).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.name = f"127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def change(self, what: str, body: dict[str, Any]) -> tuple[int, Any]:
        if self.refuses == what:
            return 400, {"error": {"code": "bad_request", "message": "the index does not find its items"}}
        if what == "lock":
            return self.lock(body)
        version = body["version"]
        if what in ("load", "tower") and version not in self.loaded:
            self.loaded = [*self.loaded, version]
        elif what == "serve":
            if version not in self.loaded:
                return 409, {"error": {"code": "version_not_held", "message": "not held"}}
            self.serving = version
        elif what == "unload":
            self.loaded = [held for held in self.loaded if held != version]
        elif what == "canary":
            self.canary = (version, body["share"])
        self.world.happened(self, what, version)
        return 200, {}

    def lock(self, body: dict[str, Any]) -> tuple[int, Any]:
        holder, self.world.holder = self.world.holder, body["token"] if body["seconds"] else None
        if holder not in (None, body["token"]) and not body["force"]:
            self.world.holder = holder
            return 409, {"error": {"code": "rollout_under_way", "message": "ann@one has changed the versions since 9"}}
        return 200, {}

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


class World:
    """Three hosts, two gateways and a store; watches that every request can be answered."""

    def __init__(self, folder: Path) -> None:
        self.log: list[tuple[str, str, str]] = []
        self.holder: str | None = None
        self.is_watched = True
        self.at_call: Callable[[int], None] = lambda number: None  # noqa: ARG005
        self.hosts = [Server(self, "host") for _ in range(3)]
        self.gateways = [Server(self, "gateway") for _ in range(2)]
        self.store = ReleaseStore(folder / "store")
        for version in (OLDEST, OLD, NEW):
            (self.store.root / version).mkdir(parents=True)
        self.store.set_alias("production", OLDEST, why="test")
        self.store.set_alias("production", OLD, why="test")
        self.store.set_alias("candidate", NEW, why="test")
        self.state = RolloutStateFile(folder / "rollout.json")
        self.screen = io.StringIO()

    def happened(self, server: Server, what: str, version: str) -> None:
        self.log.append((server.name, what, version))
        served = {host.serving for host in self.hosts} | {gateway.canary[0] for gateway in self.gateways}
        for held in (*self.hosts, *self.gateways):
            assert not self.is_watched or served <= set(held.loaded)
        self.at_call(len(self.log))

    def run(self, *words: str, token: str = TOKEN) -> int:
        more = [f"state={self.state.path}", f"admin_token={token}", "wait=0", "patience=0.2"]
        if words[0] in ("start", "canary", "status", "unlock"):
            more.append(f"hosts=[{','.join(host.name for host in self.hosts)}]")
        if words[0] in ("start", "canary"):
            more += [f"gateways=[{','.join(gateway.name for gateway in self.gateways)}]", f"store={self.store.root}"]
        config = compose_command("rollout", with_keys(COMMANDS["rollout"], [*words, *more]))
        try:
            run_action(config, Console(file=self.screen, width=200))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        return 0

    def serving(self) -> list[str]:
        return [host.serving for host in self.hosts]


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
