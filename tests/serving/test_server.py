"""Servers as processes: answers equal to batch retrieval, graceful end, and errors at the start."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import server_processes
from asking import MAX_EVENTS
from publishing import Published
from server_processes import free_port, is_ready, post

from recsys.publishing.batch_recommend import choose_users, write_recommendations
from recsys.publishing.recommenders import open_recommender
from recsys.release.runtime.retriever import Query

ROOT = Path(__file__).parents[2]
# Seconds after which a server hangs. Nothing else depends on the clock.
PATIENCE = 120


def serving(published: Published, folder: Path, port: int, *overrides: str) -> Any:
    return server_processes.serving(published.store, folder, port, f"max_events={MAX_EVENTS}", *overrides)


@pytest.mark.slow
def test_a_gateway_and_a_host_answer_as_recommend_and_end_in_order(
    published: Published, stored: Path, queries: dict[str, Query], tmp_path: Path
) -> None:
    version = published.versions[0]
    recommender = open_recommender(None, version, store=str(published.store), root=None)
    out = tmp_path / "recommendations.parquet"
    write_recommendations(recommender, choose_users("all", recommender.dataset), k=20, exclude_seen=True, out=out)
    (host, gateway) = (free_port(), free_port())
    of_host = ["role=host", f"release={version}"]
    of_gateway = ["role=gateway", f"hosts=http://127.0.0.1:{host}", "workers=2", "drain_seconds=0.5"]
    with (
        serving(published, stored.parent, host, *of_host) as one,
        serving(published, stored.parent, gateway, *of_gateway) as other,
    ):
        for row in pq.read_table(out).to_pylist():
            status, answer = post(gateway, "/v1/retrieve", {"user_id": row["user_id"], "k": 20})
            assert (status, answer["host"]) == (200, f"127.0.0.1:{host}")
            assert [item["item_id"] for item in answer["items"]] == row["item_ids"]
            np.testing.assert_allclose([item["score"] for item in answer["items"]], row["scores"], atol=1e-4)
        results: list[tuple[int, Any]] = []
        enough, stop = threading.Event(), threading.Event()

        def ask() -> None:
            for user in list(queries) * 100:
                try:
                    results.append(post(gateway, "/v1/retrieve", {"user_id": user}))
                except (ConnectionRefusedError, ConnectionResetError):
                    # The server had closed its port, so it did not accept this request.
                    return
                if len(results) > 20:
                    enough.set()
                if stop.is_set():
                    return

        callers = [threading.Thread(target=ask) for _ in range(4)]
        for caller in callers:
            caller.start()
        assert enough.wait(PATIENCE)
        other.send_signal(signal.SIGTERM)
        assert other.wait(PATIENCE) == -signal.SIGTERM
        stop.set()
        for caller in callers:
            caller.join()
        # Every accepted request was answered.
        assert {status for status, _ in results} == {200}
        assert one.poll() is None


@pytest.mark.slow
def test_a_request_that_was_accepted_before_the_signal_is_answered(published: Published, tmp_path: Path) -> None:
    port = free_port()
    with serving(published, tmp_path, port, f"release={published.versions[0]}") as process:
        slow = json.dumps([{"k": 1000}] * 200)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.putrequest("POST", "/v1/retrieve")
        connection.putheader("content-length", str(len(slow)))
        connection.putheader("expect", "100-continue")
        connection.endheaders()
        # The server sends this line when the application begins to read the body: the request is accepted.
        accepted = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert connection.sock.recv(len(accepted), socket.MSG_WAITALL) == accepted
        process.send_signal(signal.SIGTERM)
        give_up = time.monotonic() + PATIENCE
        while is_ready(port):
            assert time.monotonic() < give_up, "the server goes on to accept requests"
        # The port is closed, and only now the body arrives.
        connection.send(slow.encode())
        response = connection.getresponse()
        assert response.status == 200
        assert len(json.loads(response.read())) == 200
        assert process.wait(PATIENCE) == -signal.SIGTERM
        connection.close()


def test_a_taken_port_and_a_missing_release_end_the_start(published: Published, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for overrides, message in (
            ([f"release={published.versions[0]}"], f"port: cannot listen at 127.0.0.1:{port}"),
            ([f"release={published.versions[0]}", "workers=2"], f"port: cannot listen at 127.0.0.1:{port}"),
            (["release=none"], "has no alias 'none'"),
        ):
            given = [f"store={published.store}", f"events={tmp_path / 'events.sqlite'}", f"port={port}", *overrides]
            environment = {name: value for name, value in os.environ.items() if name != "RECSYS_ADMIN_TOKEN"}
            command = [sys.executable, str(ROOT / "serve.py"), *given]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
            assert done.returncode == 1
            assert message in done.stderr


@pytest.mark.slow
def test_histories_are_read_into_the_event_store_before_serving(published: Published, tmp_path: Path) -> None:
    port, known = free_port(), pq.read_table(published.root / "interactions.parquet", columns=["user_id"])
    with serving(published, tmp_path, port, f"release={published.versions[0]}", f"data.root={published.root}"):
        status, answer = post(port, "/v1/retrieve", {"user_id": known["user_id"][0].as_py(), "k": 5})
    assert status == 200
    assert answer["history_length"] > 0
