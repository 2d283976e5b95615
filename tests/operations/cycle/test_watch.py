"""A watch counts the answers of servers whose processes share a port."""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import counting_workers
from server_processes import free_port

from recsys.operations.cycle.watch import WatchedServer, WatchSettings, watch_servers

ANSWERS = 240


@contextmanager
def two_workers(folder: Path) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, counting_workers.__file__, str(port), str(folder)]
    with subprocess.Popen(command) as process:
        try:
            give_up = time.monotonic() + 120
            while len([*folder.glob("ready-*")]) < 2:
                assert process.poll() is None
                assert time.monotonic() < give_up
                time.sleep(0.05)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)


def ask(port: int, count: int) -> None:
    # A connection each, so that the kernel spreads them over the processes.
    for _ in range(count):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/v1/retrieve")
        assert connection.getresponse().status == 200
        connection.close()


def test_two_healthy_processes_are_no_reason_to_roll_back(tmp_path: Path) -> None:
    watch = WatchSettings(seconds=2, every=0.02, most_errors=0.01, fewest_answers=20, unready=3, switch_seconds=1)
    with two_workers(tmp_path) as port:
        caller = threading.Thread(target=ask, args=(port, ANSWERS))
        caller.start()
        # One process had 3% errors long before the release went out.
        assert watch_servers([WatchedServer(("127.0.0.1", port), None)], [], settings=watch) is None
        caller.join()
