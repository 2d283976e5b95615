"""A fake host: versions, admin calls, readiness, and counters that a test sets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "secret-of-the-tests"


class FakeHost:
    """Serves on a free port of the loopback until `stop`."""

    def __init__(self, serving: str) -> None:
        self.serving, self.loaded = serving, [serving]
        self.is_ready = True
        # (route, status) -> answers.
        self.answers: dict[tuple[str, int], int] = {}
        self.refuses: str | None = None
        # Called at each look at the metrics, with the number of the look.
        self.at_look: Callable[[int], None] = lambda number: None  # noqa: ARG005
        self.looks = 0
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/readyz":
                    self.reply(200 if host.is_ready else 503, {"status": "ready"})
                elif self.path == "/metrics":
                    host.looks += 1
                    host.at_look(host.looks)
                    self.send(200, host.metrics().encode())
                else:
                    self.reply(200, {"two_tower": {"serving": host.serving, "loaded": host.loaded}})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                what = self.path.removeprefix("/v1/admin/")
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    self.reply(401, {"error": {"code": "unauthorized", "message": "expected the token"}})
                elif what == host.refuses:
                    self.reply(400, {"error": {"code": "bad_request", "message": "its self-check fails"}})
                elif what == "lock":
                    self.reply(200, {})
                else:
                    host.change(what, body["version"])
                    self.reply(200, {})

            def reply(self, status: int, message: Any) -> None:
                self.send(status, json.dumps(message).encode())

            def send(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.name = f"127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def change(self, what: str, version: str) -> None:
        if what == "load" and version not in self.loaded:
            self.loaded = [*self.loaded, version]
        elif what == "serve":
            assert version in self.loaded
            self.serving = version
        elif what == "unload":
            self.loaded = [held for held in self.loaded if held != version]

    def metrics(self) -> str:
        lines = ["# TYPE recsys_requests_total counter"]
        for (route, status), count in self.answers.items():
            lines.append(f'recsys_requests_total{{route="{route}",status="{status}"}} {count}')
        return "\n".join([*lines, 'recsys_request_seconds_count{route="/v1/search"} 7', ""])

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
