"""What the benchmarks of one server share: serve.py as a process, and calls to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fault_cluster import free_ports

ROOT = Path(__file__).parents[1]
PATIENCE = 300.0


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Address and process of serve.py with these options, from when it is ready; `folder` is for what it writes."""
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, str(ROOT / "serve.py"), f"port={port}", "log_level=warning", *options]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    path = folder / "server.log"
    with path.open("ab") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
    try:
        wait_until_ready(address, server, path)
        yield address, server
    finally:
        server.terminate()
        server.wait()


def wait_until_ready(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Until /readyz says so."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            call(f"{address}/readyz")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise SystemExit(f"the server does not start; its log is {log}")


def call(address: str, body: object = None) -> Any:
    """What is answered, parsed; GET, or POST of a body."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(address, data), timeout=30) as answer:
        return json.loads(answer.read())
