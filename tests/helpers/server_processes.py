"""Servers as processes of their own, on ports of their own."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


# Below the ports of outgoing connections, one of which could take a port before its server does. Each process of the
# tests begins elsewhere, and none gives a port twice.
_CANDIDATES = itertools.count(os.getpid() * 37)


def free_port() -> int:
    while True:
        port = 20_000 + next(_CANDIDATES) % 12_000
        with socket.socket() as opened, suppress(OSError):
            opened.bind(("127.0.0.1", port))
            return port


def post(port: int, path: str, body: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextmanager
def serving(store: Path, folder: Path, port: int, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """A server that is ready, and killed at the end where it has not ended by then."""
    given = [f"store={store}", f"events={folder / 'events.sqlite'}", f"port={port}", *overrides]
    with (folder / f"log{port}").open("w") as log:
        command = [sys.executable, str(ROOT / "serve.py"), *given]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, text=True)
    try:
        give_up = time.monotonic() + 180
        while not is_ready(port):
            assert process.poll() is None, (folder / f"log{port}").read_text()
            assert time.monotonic() < give_up, (folder / f"log{port}").read_text()
            time.sleep(0.1)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
