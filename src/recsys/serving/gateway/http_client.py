"""HTTP/1.1 to one address: kept connections and a deadline for every request, nothing else.

A search of a small index takes less time than a general client library takes to ask for it, so this one does what a
gateway needs from its hosts: requests with a body of known length, answers read whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import cast

import httptools

# More are closed when they come back from use.
MAX_IDLE = 64


class NoAnswerError(Exception):
    """A request got no whole answer: refused, cut, too late, or not HTTP; the message says which."""


class TooLateError(NoAnswerError):
    """Nothing is wrong that another try would mend: the other side did not answer in time."""


class _CutUnansweredError(NoAnswerError):
    """Closed by the other side before the first byte of an answer."""


class _Connection(asyncio.Protocol):
    """One connection, with at most one request at a time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.is_open = False
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._has_begun = False

    async def ask(self, message: bytes) -> tuple[int, bytes]:
        """Status and body of the answer.

        Cancelling it closes the connection: a late answer must not meet the next request.
        """
        if not self.is_open:
            raise _CutUnansweredError("closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._has_begun, self._body = False, []
        self.transport.write(message)
        try:
            return await self._answer
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            self._answer = None

    def abort(self) -> None:
        """Close at once."""
        self.is_open = False
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio."""
        # The transports of uvloop are none by inheritance.
        self.transport, self.is_open = cast(asyncio.Transport, transport), True

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio."""
        self.is_open = False
        if self._has_begun:
            self.fail(NoAnswerError("cut the connection in the middle of an answer"))
        else:
            self.fail(_CutUnansweredError(f"closed the connection{f' ({exc})' if exc else ''}"))

    def data_received(self, data: bytes) -> None:
        """Of asyncio."""
        if self._answer is None or self._answer.done():
            # Nobody asked: what comes next cannot be told from this.
            self.abort()
            return
        self._has_begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(NoAnswerError(f"does not speak HTTP ({error})"))
            self.abort()

    def on_body(self, body: bytes) -> None:
        """Of httptools."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Of httptools."""
        status = self._parser.get_status_code()
        if not self._parser.should_keep_alive():
            self.is_open = False
            self.transport.close()
        if 100 <= status < 200:
            return
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, b"".join(self._body)))

    def fail(self, error: NoAnswerError) -> None:
        """End the wait for an answer, if there is one."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


class ConnectionPool:
    """Connections to one address, used again as long as the other side keeps them.

    For requests that may be sent twice: one that finds its kept connection closed goes out again on another.

    Args:
        address: host and port.
        connect_seconds: for a new connection.
    """

    def __init__(self, address: tuple[str, int], connect_seconds: float = 0.5) -> None:
        self.address, self.connect_seconds = address, connect_seconds
        host, port = address
        self._head = f" HTTP/1.1\r\nHost: {f'[{host}]' if ':' in host else host}:{port}\r\n".encode()
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._is_closed = False

    async def request(
        self, method: str, path: str, body: bytes, seconds: float, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of the answer.

        Args:
            method: of HTTP.
            path: with the query, as it goes over the wire.
            body: JSON, or nothing.
            seconds: after which the request is given up, connecting included.
            headers: besides those that HTTP needs.

        Raises:
            NoAnswerError: there is none, or not in time. The other side may have acted on the request.
        """
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        message = b"%s %s%s%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
            method.encode(), path.encode(), self._head, more.encode(), len(body), body,
        )  # fmt: skip
        try:
            async with asyncio.timeout(seconds):
                while (connection := self._kept()) is not None:
                    try:
                        return await self._ask(connection, message)
                    except _CutUnansweredError:
                        # The other side closes what was idle for long; that happened on its way to us.
                        continue
                return await self._ask(await self._connect(), message)
        except TimeoutError as error:
            raise TooLateError(f"did not answer within {seconds:g} s") from error

    async def _ask(self, connection: _Connection, message: bytes) -> tuple[int, bytes]:
        self._busy.add(connection)
        try:
            answer = await connection.ask(message)
        finally:
            self._busy.discard(connection)
        if connection.is_open and not self._is_closed and len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.abort()
        return answer

    def _kept(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.connect_seconds):
                _, connection = await loop.create_connection(_Connection, *self.address)
        except TimeoutError as error:
            raise TooLateError(f"took no connection within {self.connect_seconds:g} s") from error
        except OSError as error:
            raise NoAnswerError(f"took no connection ({error.strerror or error})") from error
        return connection

    def give_up(self, reason: str) -> None:
        """End all requests that wait for an answer: they raise `NoAnswerError` with this reason."""
        for connection in list(self._busy):
            connection.fail(NoAnswerError(reason))
            connection.abort()

    def close(self) -> None:
        """Close what is idle now, and the others when they have answered."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().abort()
