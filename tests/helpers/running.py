"""A real server on a port of its own, for tests that need a socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from recsys.serving.assembly import build_app
from recsys.serving.settings import Settings


@contextmanager
def running(wanted: Settings) -> Iterator[str]:
    """The address of a server with these settings, in a thread of this process."""
    app, _ = build_app(wanted)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, lifespan="on", http="httptools", ws="none", log_level="warning"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
