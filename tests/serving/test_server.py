"""Servers as processes, on sockets: they answer as batch retrieval does, and end in order."""

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
        stop = threading.Event()

        def ask() -> None:
            for user in list(queries) * 100:
                try:
                    results.append(post(gateway, "/v1/retrieve", {"user_id": user}))
                except (ConnectionRefusedError, ConnectionResetError):
                    # Not accepted: the server had closed its port.
                    return
                if stop.is_set():
                    return

        callers = [threading.Thread(target=ask) for _ in range(4)]
        for caller in callers:
            caller.start()
        time.sleep(0.5)
        other.send_signal(signal.SIGTERM)
        assert other.wait(60) == -signal.SIGTERM
        stop.set()
        for caller in callers:
            caller.join()
        # What was accepted was answered.
        assert len(results) > 4
        assert {status for status, _ in results} == {200}
        assert one.poll() is None


@pytest.mark.slow
def test_what_was_accepted_is_answered(published: Published, tmp_path: Path) -> None:
    port = free_port()
    with serving(published, tmp_path, port, f"release={published.versions[0]}") as process:
        slow = json.dumps([{"k": 1000}] * 500)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.putrequest("POST", "/v1/retrieve")
        connection.putheader("content-length", str(len(slow)))
        connection.endheaders()
        connection.send(slow[:100].encode())
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        # The body ends after the signal.
        connection.send(slow[100:].encode())
        response = connection.getresponse()
        assert response.status == 200
        assert len(json.loads(response.read())) == 500
        assert process.wait(60) == -signal.SIGTERM
        connection.close()
        assert not is_ready(port)


def test_a_port_that_is_taken_and_a_release_that_is_not_there(published: Published, tmp_path: Path) -> None:
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
def test_what_is_known_of_users_is_read_before_serving(published: Published, tmp_path: Path) -> None:
    port, known = free_port(), pq.read_table(published.root / "interactions.parquet", columns=["user_id"])
    with serving(published, tmp_path, port, f"release={published.versions[0]}", f"data.root={published.root}"):
        status, answer = post(port, "/v1/retrieve", {"user_id": known["user_id"][0].as_py(), "k": 5})
    assert status == 200
    assert answer["history_length"] > 0
