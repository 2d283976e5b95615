"""Three fake hosts, two fake gateways and a store, for tests of rollouts."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rich.console import Console

from recsys.cli.commands import COMMANDS
from recsys.cli.entry import with_keys
from recsys.core.errors import UserError
from recsys.experiments.compose import compose_command
from recsys.operations.rollout.actions import run_action
from recsys.operations.rollout.state import RolloutStateFile
from recsys.release.store import ReleaseStore

OLDEST, OLD, NEW = "0" * 16, "a" * 16, "b" * 16
TOKEN = "secret-of-the-tests"


class Server:
    """A fake host or gateway for rollouts."""

    def __init__(self, world: World, kind: str, port: int = 0) -> None:
        self.world, self.kind = world, kind
        self.serving, self.loaded, self.canary = OLD, [OLDEST, OLD], (OLD, 0.0)
        self.refuses: str | None = None
        # So many calls are refused with 503 first.
        self.unavailable = 0
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
        if self.unavailable:
            self.unavailable -= 1
            return 503, {"error": {"code": "unavailable", "message": "the state of the fleet cannot be read"}}
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
