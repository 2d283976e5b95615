"""Process of serve.py, and calls to it, for the benchmarks of one server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fault_cluster import free_ports

ROOT = Path(__file__).parents[1]
PATIENCE = 300.0


@contextmanager
def serving(
    folder: Path, *options: str, script: Sequence[str] = (str(ROOT / "serve.py"),)
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run serve.py with these options, and yield its address and process when it is ready; it writes into `folder`."""
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, *script, f"port={port}", "log_level=warning", *options]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    path = folder / "server.log"
    with path.open("ab") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
    try:
        wait_until_ready(address, server, log=path)
        yield address, server
    finally:
        server.terminate()
        server.wait()


def wait_until_ready(address: str, server: subprocess.Popen[bytes], *, log: Path) -> None:
    """Return when /readyz answers 200."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            call(f"{address}/readyz")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise SystemExit(f"the server does not start; its log is {log}")


def call(address: str, body: object = None) -> Any:
    """Return the decoded answer to a GET, or to a POST if there is a body."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(
        urllib.request.Request(address, data, {"content-type": "application/json"}), timeout=30
    ) as answer:
        return json.loads(answer.read())
