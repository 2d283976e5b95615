"""A real server of an application without a release, in a thread."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import uvicorn
from asking import settings

from recsys.serving.http.app import App
from recsys.serving.http.connection import connections
from recsys.serving.server import DrainingServer
from recsys.serving.workers import bind

# A limit for what hangs; nothing depends on the time that it takes.
PATIENCE = 60.0


class Process:
    is_draining = False

    async def not_ready(self) -> None:
        return None


@contextmanager
def serving(app: App, folder: Path, tls: ssl.SSLContext | None = None, *, has_admin: bool = False) -> Iterator[int]:
    """Yield the port of the server; with `has_admin`, `app.admin_port` is another one."""
    kind = connections(app.admissions, 32 << 10)
    config = uvicorn.Config(app, interface="asgi3", http=kind, ws="none", lifespan="on", log_config=None)
    wanted = settings(SimpleNamespace(store=folder), folder / "events.sqlite", request_seconds=PATIENCE)
    server = DrainingServer(config, Process(), settings=wanted, tls=tls)  # type: ignore[arg-type]  # what is read
    listeners = [bind("127.0.0.1", 0, shared=False) for _ in range(1 + has_admin)]
    for one in listeners:
        one.listen()
    if has_admin:
        app.admin_port = listeners[1].getsockname()[1]
    port: int = listeners[0].getsockname()[1]
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(listeners)))
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
