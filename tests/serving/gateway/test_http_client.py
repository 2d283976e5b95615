"""A small HTTP client: connections are kept, deadlines hold, and no answer meets another request."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import Awaitable, Callable

import pytest
from fake_hosts import FakeHost, running

from recsys.serving.gateway.http_client import HTTPClient, NoAnswerError, TooLateError

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def ask_server(
    talk: Talk, times: int = 1, *, seconds: float = 5.0, max_bytes: int = 1 << 20
) -> list[tuple[int, bytes] | Exception]:
    """Answers to requests, one after the other, to a server that does `talk` with each connection."""
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    client = HTTPClient(server.sockets[0].getsockname()[:2], max_bytes=max_bytes)
    answers: list[tuple[int, bytes] | Exception] = []
    for number in range(times):
        try:
            answers.append(await client.request("POST", f"/{number}", body=b"x", seconds=seconds))
        except NoAnswerError as error:
            answers.append(error)
    await client.close()
    server.close()
    return answers


def test_a_connection_serves_one_request_after_the_other() -> None:
    connections = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while head := await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(1)
            path = head.split()[1]
            # In pieces, and once in chunks: as it may come over a network.
            if path == b"/1":
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
                await asyncio.sleep(0.01)
                writer.write(b"1\r\nc\r\n0\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 404 No\r\nContent-Length: 4\r\n\r\n")
                await asyncio.sleep(0.01)
                writer.write(b"%b--" % path)

    answers = asyncio.run(ask_server(talk, times=3))
    assert answers == [(404, b"/0--"), (200, b"abc"), (404, b"/2--")]
    assert len(connections) == 1


def test_a_server_that_wants_to_close_gets_a_new_connection() -> None:
    connections = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await reader.readuntil(b"\r\n\r\nx")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\ny")
        writer.close()

    assert asyncio.run(ask_server(talk, times=2)) == [(200, b"y"), (200, b"y")]
    assert len(connections) == 2


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (b"", "closed the connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "in the middle"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "does not speak HTTP"),
    ],
)
def test_half_an_answer_is_none(says: bytes, message: str) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\nx")
        writer.write(says)
        await writer.drain()
        writer.close()

    (error,) = asyncio.run(ask_server(talk))
    assert isinstance(error, NoAnswerError)
    assert message in str(error)


def test_a_late_answer_meets_no_other_request() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(1)
            path = head.split()[1]
            if path == b"/0":
                await given_up.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + path)

    async def scenario() -> list[tuple[int, bytes]]:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        client = HTTPClient(server.sockets[0].getsockname()[:2])
        with pytest.raises(TooLateError, match="did not answer within"):
            await client.request("GET", "/0", seconds=0.2, body=b"x")
        given_up.set()
        answers = [await client.request("GET", path, seconds=60, body=b"x") for path in ("/1", "/2")]
        await client.close()
        server.close()
        return answers

    given_up = asyncio.Event()
    assert asyncio.run(scenario()) == [(200, b"/1"), (200, b"/2")]


@pytest.mark.parametrize("head", [b"Content-Length: 2000", b"Transfer-Encoding: chunked"])
def test_a_response_that_is_too_large_is_not_read(head: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\nx")
        writer.write(b"HTTP/1.1 200 OK\r\n%s\r\n\r\n" % head)
        for _ in range(20):
            writer.write(b"y" * 100 if b"Length" in head else b"64\r\n%s\r\n" % (b"y" * 100))
        await writer.drain()
        # Without an end: only the size ends the wait.
        await reader.read()

    (error,) = asyncio.run(ask_server(talk, max_bytes=1999, seconds=60))
    assert isinstance(error, NoAnswerError)
    assert "more than 1999 bytes" in str(error)


def test_an_answer_leads_nowhere() -> None:
    visited = []

    async def visit(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visited.append(writer)
        writer.close()

    async def ask() -> list[tuple[int, bytes] | Exception]:
        other = await asyncio.start_server(visit, "127.0.0.1", 0)
        place = b"http://127.0.0.1:%d/" % other.sockets[0].getsockname()[1]

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\nx")
            writer.write(b"HTTP/1.1 307 There\r\nLocation: %b\r\nContent-Length: 2\r\n\r\n{}" % place)

        return await ask_server(talk)

    assert asyncio.run(ask()) == [(307, b"{}")]
    assert visited == []


def test_an_answer_does_not_grow_when_it_is_read() -> None:
    small = gzip.compress(bytes(1 << 16))

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\nx")
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(small)
        writer.write(head + small)

    assert asyncio.run(ask_server(talk)) == [(200, small)]


def test_the_time_limit_covers_a_body_that_trickles() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\nx")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"y")
            await asyncio.sleep(0.01)

    (error,) = asyncio.run(ask_server(talk, seconds=0.2))
    assert isinstance(error, TooLateError)


def test_a_kept_connection_that_was_closed_is_replaced() -> None:
    async def scenario() -> None:
        host = FakeHost()
        async with running(host):
            client = HTTPClient(("127.0.0.1", host.port))
            await client.request("GET", "/v1/version", seconds=5)
            host.cut_idle()
            # At once, before the client has read that the connection is closed.
            assert (await client.request("GET", "/v1/version", seconds=5))[0] == 200
            host.cut_idle()
            await asyncio.sleep(0.05)
            assert (await client.request("GET", "/v1/version", seconds=5))[0] == 200
            await client.close()

    asyncio.run(scenario())


def test_waiting_can_be_given_up() -> None:
    async def scenario() -> None:
        host = FakeHost()
        async with running(host):
            host.running.clear()
            client = HTTPClient(("127.0.0.1", host.port))
            waiting = [asyncio.create_task(client.request("GET", "/v1/version", seconds=30)) for _ in range(3)]
            while len(host.requests) < 3:
                await asyncio.sleep(0.01)
            client.give_up("is paused")
            for task in waiting:
                with pytest.raises(NoAnswerError, match="is paused"):
                    await task
            host.running.set()
            assert (await client.request("GET", "/v1/version", seconds=30))[0] == 200
            await client.close()

    asyncio.run(scenario())


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
        with pytest.raises(NoAnswerError, match="took no connection"):
            asyncio.run(HTTPClient(address).request("GET", "/", seconds=5))
