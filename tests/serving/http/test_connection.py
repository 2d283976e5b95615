"""Connections of a real server on the loopback address: limits, and health while the event loop is blocked."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest
import uvicorn
from asking import settings

from recsys.serving.http.acceptor import Acceptor
from recsys.serving.http.admission import Admission
from recsys.serving.http.connection import Connection, connections
from recsys.serving.http.hand_over import TURN, HandOver
from recsys.serving.http.problems import Problem, unavailable
from recsys.serving.http.sweeping import UNREAD_BYTES, sweep
from recsys.serving.server import DrainingServer
from recsys.serving.workers import bind

# A limit for what hangs; nothing depends on the time that it takes.
PATIENCE = 60.0


class Process:
    """State of the process, as `ProcessRoutes` has it."""

    is_draining = False
    problem: Problem | None = None

    async def not_ready(self) -> Problem | None:
        return self.problem


class Running(NamedTuple):
    port: int
    process: Process
    admission: Admission
    block: threading.Event
    blocked: threading.Event
    entered: threading.Semaphore
    cancelled: threading.Event


@pytest.fixture
def running(published: Any, tmp_path: Any) -> Iterator[Running]:
    admission = Admission(1.0, most=2, least=2)
    block, blocked, cancelled, entered = threading.Event(), threading.Event(), threading.Event(), threading.Semaphore(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["path"] == "/block":
            blocked.set()
            block.wait(PATIENCE)
        if scope["path"] == "/wait":
            entered.release()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                return
        answer, length, message = b"ok", 0, {"more_body": scope["path"] in ("/length", "/headers")}
        while message.get("more_body"):
            message = await receive()
            length += len(message["body"])
            answer = b"%d" % length
        if scope["path"] == "/headers":
            answer = b" ".join(name for name, _ in scope["headers"])
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    wanted = settings(published, tmp_path / "events.sqlite", request_seconds=PATIENCE)
    config = uvicorn.Config(
        app,
        interface="asgi3",
        http=connections({"/wait": admission}, 2000),
        lifespan="on",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    process = Process()
    server = DrainingServer(config, process, settings=wanted)  # type: ignore[arg-type]  # the part that is read
    listening = bind("127.0.0.1", 0, shared=False)
    port = listening.getsockname()[1]
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    yield Running(port, process, admission, block, blocked, entered, cancelled)
    block.set()
    server.should_exit = True
    thread.join(PATIENCE)
    assert not thread.is_alive()


def send(port: int, content: bytes) -> socket.socket:
    while True:
        try:
            opened = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
            break
        except ConnectionRefusedError:
            # The server is starting.
            continue
    opened.sendall(content)
    return opened


def ask(port: int, content: bytes) -> bytes:
    """Send a request, and return the answer up to its end of connection."""
    answer = b""
    with send(port, content) as opened:
        while part := opened.recv(65536):
            answer += part
    return answer


def get(port: int, path: str, *headers: str) -> bytes:
    return ask(port, "\r\n".join([f"GET {path} HTTP/1.1", "host: a", "connection: close", *headers, "", ""]).encode())


def test_health_is_answered_while_the_loop_is_blocked(running: Running) -> None:
    assert get(running.port, "/other").endswith(b"ok")
    assert get(running.port, "/readyz").startswith(b"HTTP/1.1 200")
    waiting = send(running.port, b"GET /block HTTP/1.1\r\nhost: a\r\n\r\n")
    assert running.blocked.wait(PATIENCE)
    assert get(running.port, "/healthz").endswith(b'{"status":"ok"}')
    assert get(running.port, "/readyz").endswith(b'{"status":"ready"}')
    head = ask(running.port, b"HEAD /healthz HTTP/1.1\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert head.endswith(b"\r\n\r\n")
    running.block.set()
    assert waiting.recv(65536).startswith(b"HTTP/1.1 200")
    waiting.close()
    running.process.problem = unavailable("serves nothing yet")
    refused = get(running.port, "/readyz")
    assert refused.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in refused
    assert b"serves nothing yet" in refused


def test_too_many_requests_are_refused_and_requests_of_clients_that_left_are_cancelled(running: Running) -> None:
    wait = b"POST /wait HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}"
    first, second = send(running.port, wait), send(running.port, wait)
    for _ in range(2):
        assert running.entered.acquire(timeout=PATIENCE)
    with send(running.port, wait) as third:
        refused = third.recv(65536)
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in refused
        assert b'"overloaded"' in refused
        # The connection is usable, and other paths are not limited.
        third.sendall(b"GET /other HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert b"".join(iter(lambda: third.recv(65536), b"")).endswith(b"ok")
    first.close()
    assert running.cancelled.wait(PATIENCE)
    with send(running.port, wait):
        assert running.entered.acquire(timeout=PATIENCE)
    second.close()


@pytest.mark.parametrize(
    "parts",
    [
        # In one piece a plain request is refused without being parsed.
        [b"POST /wait HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}"],
        [b"POST /wait?a=b HTTP/1.1\r\nContent-Length:2\r\nhost: a\r\n\r\n{}"],
        [b"POST /wait HTTP/1.1\r\nhost: a\r\ncontent-le", b"ngth: 2\r\n\r\n{", b"}"],
        [b"POST /wait HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"],
        [b"POST /wait HTTP/1.1\r\nhost: a\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n"],
    ],
)
def test_a_refused_request_leaves_its_connection_usable(running: Running, parts: list[bytes]) -> None:
    wait = b"POST /wait HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}"
    full = [send(running.port, wait) for _ in range(2)]
    for _ in full:
        assert running.entered.acquire(timeout=PATIENCE)
    with send(running.port, b"GET /other HTTP/1.1\r\nhost: a\r\n\r\n") as asking:
        while not asking.recv(65536).endswith(b"ok"):
            continue
        for _ in range(2):
            for part in parts:
                asking.sendall(part)
            answer = asking.recv(65536)
            assert answer.startswith(b"HTTP/1.1 503")
            assert answer.count(b"HTTP/1.1") == 1
        # What is no plain request is parsed, and other paths are answered.
        asking.sendall(b"GET /other HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert b"".join(iter(lambda: asking.recv(65536), b"")).endswith(b"ok")
    assert running.admission.refused == 2
    for opened in full:
        opened.close()


@pytest.mark.parametrize("was_in_the_loop", [True, False])
@pytest.mark.parametrize("fresh", [0.0, PATIENCE])
def test_a_place_goes_to_a_new_request_and_not_to_an_old_one(
    running: Running, monkeypatch: pytest.MonkeyPatch, fresh: float, was_in_the_loop: bool
) -> None:
    wait = b"POST /wait HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}"
    for module in ("acceptor", "connection"):
        monkeypatch.setattr(f"recsys.serving.http.{module}.FRESH_SECONDS", fresh)
        # No pause ends by itself, and the places were full a moment ago.
        monkeypatch.setattr(f"recsys.serving.http.{module}.pause_of", lambda _: PATIENCE)
        monkeypatch.setattr(f"recsys.serving.http.{module}.MOST_PAUSE", 10 * PATIENCE)
    full = [send(running.port, wait) for _ in range(2)]
    for _ in full:
        assert running.entered.acquire(timeout=PATIENCE)
    with send(running.port, b"GET /other HTTP/1.1\r\nhost: a\r\n\r\n" if was_in_the_loop else wait) as asking:
        if was_in_the_loop:
            while not asking.recv(65536).endswith(b"ok"):
                continue
            asking.sendall(wait)
        assert asking.recv(65536).startswith(b"HTTP/1.1 503")
        # It is sent during the pause.
        asking.sendall(wait)
        for opened in full:
            opened.close()
        if not fresh:
            assert asking.recv(65536).startswith(b"HTTP/1.1 503")
            asking.sendall(wait)
        assert running.entered.acquire(timeout=PATIENCE)


# A request up to its last chunk, which trailers may follow.
CHUNKED = b"POST /headers HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n1\r\n \r\n0\r\n"


@pytest.mark.parametrize(
    "content",
    [
        b"GET /other HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 2100 + b"\r\n\r\n",
        b"GET /other HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 2100,
        b"GET /other?" + b"y" * 2100 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /other HTTP/1.1\r\n" + b"".join(b"x%d: y\r\n" % number for number in range(600)) + b"\r\n",
        CHUNKED + b"x: " + b"y" * 100_000,
        CHUNKED + b"x: y\r\n" * 20_000,
    ],
)
def test_headers_have_a_limit(running: Running, content: bytes) -> None:
    assert ask(running.port, content).startswith(b"HTTP/1.1 431")


def test_answers_that_nobody_reads_and_halves_of_requests_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.serving.http.sweeping.SWEEP_SECONDS", 0)
    made = []
    half, quarter = UNREAD_BYTES // 2, UNREAD_BYTES // 4
    for began, received, stalled, size in (
        (None, 0, None, 0), (None, 0, 4.0, half), (1.5, half, None, 0), (None, 0, 1.0, quarter), (3.0, half, None, 0),
    ):  # fmt: skip
        one = object.__new__(Connection)
        one.began, one.received, one.stalled = began, received, stalled
        one.transport = Mock(**{"get_write_buffer_size.return_value": size})
        made.append(one)

    async def run() -> None:
        looks = iter([set(made)])
        # It ends when there is nothing more to look at.
        with contextlib.suppress(RuntimeError):
            await sweep(lambda: next(looks), float("inf"))

    asyncio.run(run())
    # The rest fits without those that wait for longest.
    assert [one.transport.abort.called for one in made] == [False, False, True, True, False]


def test_what_follows_a_body_is_no_header(running: Running) -> None:
    answer = ask(running.port, CHUNKED + b"authorization: Bearer x\r\nhost: b\r\n\r\n")
    assert answer.endswith(b"\r\n\r\nhost connection transfer-encoding")


def test_many_requests_at_once_end_their_connection_only(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    one = b"GET /other HTTP/1.1\r\nhost: a\r\n\r\n"
    with send(running.port, one * 20) as few, send(running.port, one * 5000) as many:
        answers = b""
        while answers.count(b"HTTP/1.1 200") < 20:
            answers += few.recv(65536)
        with contextlib.suppress(ConnectionError):
            while many.recv(65536):
                continue
    assert get(running.port, "/other").endswith(b"ok")
    assert "Task exception" not in caplog.text


@pytest.mark.parametrize("size", [1, 9, 100_000])
def test_a_long_body_is_read_in_turns(running: Running, size: int) -> None:
    chunk = b"%x\r\n%s\r\n" % (size, b" " * size)
    head = b"POST /length HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    count = 400_000 // size
    assert ask(running.port, head + chunk * count + b"0\r\n\r\n").endswith(b"\r\n\r\n%d" % (size * count))


# A request in parts: its head is whole after the second one.
HALF = [b"POST / HTTP/1.1\r\nhost: a\r\nconte", b"nt-length: 6000\r\n\r\n{", b" " * 5000, b" " * 998 + b"}"]


class Accepted:
    """An acceptor with a clock of its own."""

    def __init__(self, most: int = 10) -> None:
        self.now = 0.0
        self.taken: list[socket.socket] = []
        self.took = threading.Semaphore(0)
        listening = bind("127.0.0.1", 0, shared=False)
        self.port = listening.getsockname()[1]
        self.acceptor = Acceptor(
            listening,
            self.take,
            num_open=lambda: len(self.taken),
            ready=lambda: None,
            most=most,
            clock=lambda: self.now,
        )

    def take(self, opened: socket.socket, **_: object) -> None:
        self.taken.append(opened)
        self.took.release()

    def __enter__(self) -> Accepted:
        self.acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.acceptor.close()
        for opened in self.taken:
            opened.close()


@pytest.mark.parametrize("begin", [b"", b"G", HALF[0], HALF[0] + HALF[1]])
def test_connections_without_a_whole_request_are_closed_in_time(begin: bytes) -> None:
    with Accepted() as accepted, send(accepted.port, begin) as slow, send(accepted.port, b"G") as left:
        left.close()
        with send(accepted.port, b"GET / HTTP/1.1\r\n\r\n"):
            assert accepted.took.acquire(timeout=PATIENCE)
        accepted.now = 10.1
        # A connection with unread bytes is reset.
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(1) == b""
        assert len(accepted.taken) == 1


@pytest.mark.parametrize("begin", [HALF[0], b"".join(HALF[:2]), b"".join(HALF[:3]), b"".join(HALF)])
def test_the_loop_gets_a_connection_when_its_request_is_whole(begin: bytes) -> None:
    whole = b"".join(HALF)
    with Accepted() as accepted, send(accepted.port, begin) as asking:
        asking.sendall(whole[len(begin) :])
        assert accepted.took.acquire(timeout=PATIENCE)
        taken = accepted.taken[0]
        assert taken.recv(65536, socket.MSG_PEEK) == whole
        assert taken.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


@pytest.mark.parametrize(
    "begin",
    [b"\x16\x03", b"GET\n\n", b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n",
     b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: 90000\r\n\r\n",
     b"GET / HTTP/1.1\r\na: " + b"b" * 70_000],
)  # fmt: skip
def test_what_has_no_known_end_is_read_at_once(begin: bytes) -> None:
    with Accepted() as accepted, send(accepted.port, begin):
        assert accepted.took.acquire(timeout=PATIENCE)


def test_an_option_that_the_system_refuses_ends_one_connection_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError("the other side has left")

    with Accepted() as accepted:
        monkeypatch.setattr(socket.socket, "setsockopt", refused)
        # A connection with unread bytes is reset.
        with send(accepted.port, HALF[0]) as half, contextlib.suppress(ConnectionResetError):
            half.settimeout(PATIENCE)
            assert half.recv(1) == b""
        with send(accepted.port, b"GET / HTTP/1.1\r\n\r\n"):
            assert accepted.took.acquire(timeout=PATIENCE)


def test_a_crowd_of_connections_takes_no_places_and_a_whole_request_goes_first() -> None:
    loop, begun, limit = asyncio.new_event_loop(), [], Admission(1.0, most=2, least=2)

    async def take(opened: Any) -> None:
        begun.append(opened)

    async def a_few_turns() -> int:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return len(begun)

    hand_over: Any = HandOver(loop, take)
    for number in range(3000):
        hand_over.add(number, is_whole=False, admission=None)
    assert hand_over.num_pending(limit) == 0
    hand_over.add("whole", is_whole=True, admission=limit)
    assert (hand_over.num_pending(limit), len(hand_over)) == (1, 3001)
    assert 0 < loop.run_until_complete(a_few_turns()) <= 3 * TURN
    assert begun[0] == "whole"
    assert hand_over.num_pending(limit) == 0
    while len(hand_over):
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert len(begun) == 3001


def test_a_connection_that_cannot_be_taken_does_not_count_for_ever() -> None:
    loop, limit = asyncio.new_event_loop(), Admission(1.0, most=2, least=2)
    loop.set_exception_handler(lambda *_: None)

    async def take(_: Any) -> None:
        raise RuntimeError("no TLS")

    hand_over: Any = HandOver(loop, take)
    hand_over.add("whole", is_whole=True, admission=limit)
    for _ in range(3):
        loop.run_until_complete(asyncio.sleep(0))
    assert (hand_over.num_pending(limit), len(hand_over)) == (0, 0)
    loop.close()


def test_half_open_connections_make_room_for_others(caplog: pytest.LogCaptureFixture) -> None:
    with Accepted(most=3) as accepted:
        silent = [send(accepted.port, b"") for _ in range(20)]
        with send(accepted.port, b"GET / HTTP/1.1\r\n\r\n"):
            assert accepted.took.acquire(timeout=PATIENCE)
        for opened in silent:
            opened.close()
    assert caplog.text.count("3 connections are open") == 1


def test_a_lack_of_descriptors_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Exhausted:
        def __init__(self, real: socket.socket) -> None:
            self.real, self.failures = real, 2

        def accept(self) -> Any:
            if self.failures:
                self.failures -= 1
                raise OSError(24, "Too many open files")
            return self.real.accept()

        def close(self) -> None:
            self.real.close()

    caplog.set_level(logging.WARNING)
    with Accepted() as accepted:
        acceptor: Any = accepted.acceptor
        acceptor._listening, listening = Exhausted(acceptor._listening), acceptor._listening
        acceptor._accept_some()
        assert "no connection can be accepted (Too many open files)" in caplog.text
        acceptor._listening = listening
        with send(accepted.port, b"GET / HTTP/1.1\r\n\r\n"):
            assert accepted.took.acquire(timeout=PATIENCE)
