"""The client against a server that answers, refuses, fails and hangs up as told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from recsys.client import (
    Answer,
    Client,
    RequestError,
    ScoredItem,
    SimilarAnswer,
    UnavailableError,
    VersionNotHeldError,
    Versions,
)

ANSWER = {
    "items": [{"item_id": "a", "score": 0.5}, {"item_id": 7, "score": 0.25}],
    "version": "v",
    "user_tower_version": "v",
    "index_version": "v",
    "host": "one",
    "history_length": 3,
    "unknown_items": [9],
}
HANG_UP = "hang up"


class Scripted:
    """Answers in the order of `script`: (status, content), or `HANG_UP`; keeps what was asked, by which connection."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.asked: list[tuple[str, str, Any]] = []
        self.connections: list[Any] = []
        self.delay = 0.0
        self.retry_after: str | None = None
        self.keep_alive = True


@pytest.fixture
def server() -> Iterator[tuple[Scripted, str]]:
    told = Scripted()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_any(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = self.rfile.read(length)
            told.asked.append((self.command, self.path, json.loads(body) if body else None))
            told.connections.append(self.client_address)
            time.sleep(told.delay)
            step = told.script.pop(0)
            if step == HANG_UP:
                self.close_connection = True
                return
            status, content = step
            encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(encoded)))
            if told.retry_after:
                self.send_header("retry-after", told.retry_after)
            self.end_headers()
            with suppress(BrokenPipeError):
                self.wfile.write(encoded)
            # Hangs up after the answer, without having said so.
            self.close_connection = not told.keep_alive

        do_GET = do_POST = handle_any  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield told, f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


def test_retrieve_sends_its_arguments_and_returns_the_answer(server: tuple[Scripted, str]) -> None:
    told, url = server
    told.script = [(200, ANSWER), (200, ANSWER)]
    with Client(url) as client:
        answer = client.retrieve(5, k=2, filter={"category": ["x"]})
        client.retrieve(history=[{"item_id": "a", "timestamp": 3}], exclude=["b"], exclude_seen=False)
    items = [ScoredItem("a", 0.5), ScoredItem(7, 0.25)]
    assert answer == Answer(items, "v", "v", "v", "one", 3, [9])
    first, second = told.asked
    assert first == (
        "POST", "/v1/retrieve", {"user_id": 5, "k": 2, "exclude_seen": True, "filter": {"category": ["x"]}}
    )  # fmt: skip
    assert second[2] == {
        "history": [{"item_id": "a", "timestamp": 3}], "exclude": ["b"], "k": 100, "exclude_seen": False
    }  # fmt: skip
    assert len(set(told.connections)) == 1


def test_similar_items_quotas_and_versions(server: tuple[Scripted, str]) -> None:
    told, url = server
    found = {name: ANSWER[name] for name in ("items", "version", "index_version", "host", "unknown_items")}
    told.script = [(200, {**found, "impression_id": "x"}), (200, {**ANSWER, "of_a_later_server": 1})]
    with Client(url) as client:
        similar = client.similar(["c"], k=2, quotas={"category": 1}, version="v", exclude=["b"])
        client.retrieve(5, quotas={"category": 2}, version="v")
    items = [ScoredItem("a", 0.5), ScoredItem(7, 0.25)]
    assert similar == SimilarAnswer(items, "v", "v", "one", [9], "x")
    assert told.asked == [
        ("POST", "/v1/similar",
         {"item_ids": ["c"], "k": 2, "quotas": {"category": 1}, "version": "v", "exclude": ["b"]}),
        ("POST", "/v1/retrieve",
         {"user_id": 5, "quotas": {"category": 2}, "version": "v", "k": 100, "exclude_seen": True}),
    ]  # fmt: skip


def test_events_get_their_time_before_they_are_sent_so_that_sending_again_is_safe(server: tuple[Scripted, str]) -> None:
    told, url = server
    counts = {"stored": 1, "repeated": 1, "dropped": 0}
    told.script = [HANG_UP, (200, counts)]
    with Client(url) as client:
        events = [{"user_id": 1, "item_id": 2}, {"user_id": 1, "item_id": 3, "timestamp": 4}]
        assert client.add_events(events) == counts
    assert told.asked[0] == told.asked[1]
    stamped, given = told.asked[1][2]
    assert abs(stamped["timestamp"] - time.time()) < 60
    assert given["timestamp"] == 4


def test_outcomes_are_sent_with_times_and_counted(server: tuple[Scripted, str]) -> None:
    told, url = server
    counts = {"stored": 1, "repeated": 0, "unknown": 1, "late": 0}
    told.script = [HANG_UP, (200, counts)]
    given = {"impression_id": "x", "item_id": 2, "action": "save"}
    with Client(url) as client:
        assert client.add_outcomes([given, {**given, "timestamp": 4}]) == counts
    assert told.asked[0] == told.asked[1]
    assert told.asked[0][1] == "/v1/outcomes"
    assert [one["timestamp"] == 4 for one in told.asked[0][2]] == [False, True]


def test_refusals_say_code_message_and_field(server: tuple[Scripted, str]) -> None:
    told, url = server
    told.script = [(400, {"error": {"code": "bad_request", "message": "k: found 0", "field": "k"}})]
    with Client(url) as client, pytest.raises(RequestError, match="bad_request: k: found 0") as caught:
        client.retrieve(k=0)
    assert (caught.value.status, caught.value.code, caught.value.field) == (400, "bad_request", "k")
    assert len(told.asked) == 1


def test_a_version_that_is_not_held(server: tuple[Scripted, str]) -> None:
    told, url = server
    error = {"code": "version_not_held", "message": "version: found w"}
    told.script = [(409, {"error": error, "serving": "v", "loaded": ["u", "v"]})]
    with Client(url) as client, pytest.raises(VersionNotHeldError) as caught:
        client.search("w", [[1.0, 0.0]])
    assert (caught.value.serving, caught.value.loaded, caught.value.status) == ("v", ["u", "v"], 409)


def test_search_versions_and_hosts(server: tuple[Scripted, str]) -> None:
    told, url = server
    held = {"pins": {"serving": "v", "loaded": ["u", "v"]}}
    told.script = [(200, {"version": "v", "results": [{"item_ids": ["a"], "scores": [1.5]}]}), (200, held)]
    told.script.append((200, {"one": held, "two": None}))
    with Client(url) as client:
        (found,) = client.search("v", [[1.0, 0.0]], k=1, exclude=[["b"]])
        assert (found.item_ids, found.scores) == (["a"], [1.5])
        assert client.versions() == {"pins": Versions("v", ["u", "v"])}
        assert client.hosts() == {"one": {"pins": Versions("v", ["u", "v"])}, "two": None}
    assert told.asked[0][2] == {"version": "v", "embeddings": [[1.0, 0.0]], "k": 1, "exclude": [["b"]]}
    assert [path for _, path, _ in told.asked] == ["/v1/search", "/v1/version", "/v1/hosts"]


def test_calls_are_retried_after_503_and_lost_connections(server: tuple[Scripted, str]) -> None:
    told, url = server
    full = {"error": {"code": "unavailable", "message": "no host answers"}}
    told.script = [(503, full), HANG_UP, (200, ANSWER), (503, full), (503, full), (503, b"<h1>proxy</h1>")]
    with Client(url) as client:
        assert client.retrieve(1).version == "v"
        assert len(told.asked) == 3
        with pytest.raises(UnavailableError, match="status 503, found b'<h1>proxy</h1>'"):
            client.retrieve(1)
    assert len(told.asked) == 6


def test_no_other_failure_is_retried(server: tuple[Scripted, str]) -> None:
    told, url = server
    told.script = [(500, {"error": {"code": "internal", "message": "a mistake"}}), (200, b"no JSON"), (502, b"")]
    with Client(url) as client:
        for code in ("internal", "unreadable", "unreadable"):
            with pytest.raises(RequestError) as caught:
                client.retrieve(1)
            assert caught.value.code == code
    assert len(told.asked) == 3


def test_retry_after_is_respected(server: tuple[Scripted, str]) -> None:
    told, url = server
    told.retry_after = "1"
    told.script = [(503, {"error": {"code": "unavailable", "message": "draining"}}), (200, ANSWER)]
    begin = time.monotonic()
    with Client(url) as client:
        client.retrieve(1)
    assert time.monotonic() - begin >= 1


def test_an_idle_connection_that_the_server_closed_costs_no_retry(server: tuple[Scripted, str]) -> None:
    told, url = server
    told.script, told.keep_alive = [(200, ANSWER), (200, ANSWER)], False
    with Client(url, retries=0) as client:
        client.retrieve(1)
        client.retrieve(1)
    assert len(set(told.connections)) == 2


def test_a_slow_server_is_not_waited_for(server: tuple[Scripted, str]) -> None:
    told, url = server
    told.script, told.delay = [(200, ANSWER)] * 2, 0.5
    with Client(url, timeout=0.1, retries=1) as client, pytest.raises(UnavailableError, match="timed out") as caught:
        client.retrieve(1)
    assert (caught.value.status, caught.value.code) == (None, "no_answer")
    give_up = time.monotonic() + 60
    while len(told.asked) < 2 and time.monotonic() < give_up:
        time.sleep(0.01)
    assert len(told.asked) == 2


def test_readiness(server: tuple[Scripted, str]) -> None:
    told, url = server
    told.script = [(200, {}), (503, {})]
    with Client(url) as client:
        assert client.is_ready()
        assert not client.is_ready()
    with Client("http://127.0.0.1:9", timeout=0.2) as client:
        assert not client.is_ready()


def test_threads_share_a_client(server: tuple[Scripted, str]) -> None:
    told, url = server
    told.script = [(200, {**ANSWER, "host": str(number)}) for number in range(40)]
    found: list[str] = []
    with Client(url) as client:
        threads = [
            threading.Thread(target=lambda: found.extend(client.retrieve(1).host for _ in range(10))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found, key=int) == [str(number) for number in range(40)]
    assert len(set(told.connections)) <= 4


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected http://HOST:PORT"):
        Client(url)
