"""HTTP connection of a server: admission before a request is read, limits of headers and time. Imports no torch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from recsys.serving.http.admission import Admission, overloaded
from recsys.serving.http.codec import encode
from recsys.serving.http.messages import error_response
from recsys.serving.http.problems import Problem

# Seconds in which a refused connection is not read. A client that repeats at once would cost as much as an answer.
REFUSED_SECONDS = 0.05
# Seconds between two looks at all connections.
SWEEP_SECONDS = 1.0


def _raw(problem: Problem, status_line: bytes, *headers: bytes) -> bytes:
    body = encode(error_response(problem))
    lines = [status_line, b"content-type: application/json", b"content-length: %d" % len(body), *headers]
    return b"HTTP/1.1 " + b"\r\n".join([*lines, b"", body])


_OVERLOADED = _raw(overloaded(), b"503 Service Unavailable", b"retry-after: 1")


class Connection(HttpToolsProtocol):
    """uvicorn's connection with admission, a limit of the headers, and cancellation of requests whose client left.

    A request of a path in `admissions` that finds too many before it is refused before its task is made. Made by
    `connections`, because uvicorn constructs it.
    """

    admissions: Mapping[str, Admission] = {}
    header_bytes = 32 << 10

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin: the first request must arrive in time."""
        super().connection_made(transport)
        self.began: float | None = time.monotonic()
        self.stalled: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._admitted: Admission | None = None
        self._refused, self._in_headers, self._read_bytes = False, True, 0

    def data_received(self, data: bytes) -> None:
        """Read a part of a request; too many bytes of headers end the connection."""
        if self._in_headers:
            self._read_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._read_bytes > self.header_bytes:
            self._refuse_headers()

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self.began = time.monotonic()
        self._refused, self._in_headers = False, True

    def on_headers_complete(self) -> None:
        """Refuse or start a request."""
        self._in_headers, self._read_bytes = False, 0
        if self.transport.is_closing():
            self._refused = True
            return
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > self.header_bytes:
            self._refused = True
            self._refuse_headers()
            return
        # A refusal must not overtake the answer to an earlier request of the connection.
        if self.cycle is None or self.cycle.response_complete:
            admission = self.admissions.get(_path(self.url))
            if admission is not None:
                if not admission.enter():
                    self._refused = True
                    self.transport.write(_OVERLOADED)
                    return
                self._admitted = admission
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body, unless the request was refused."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request; a refused connection pauses."""
        self.began = None
        if not self._refused:
            super().on_message_complete()
        elif not self.transport.is_closing():
            self.flow.pause_reading()
            self.loop.call_later(REFUSED_SECONDS, self._read_again)

    def _read_again(self) -> None:
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.cycle is None or self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _refuse_headers(self) -> None:
        if not self.transport.is_closing():
            message = f"headers: expected at most {self.header_bytes} bytes"
            problem = Problem(431, "too_large", message=message)
            self.transport.write(_raw(problem, b"431 Request Header Fields Too Large", b"connection: close"))
            self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
        self._task = task

    def on_response_complete(self) -> None:
        """End a request."""
        self._leave()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the request of a client that left, unless it changes the server."""
        if self._admitted is not None and self._task is not None:
            self._task.cancel()
        self._leave()
        super().connection_lost(exc)

    def _leave(self) -> None:
        if self._admitted is not None:
            self._admitted.leave()
            self._admitted = None

    def pause_writing(self) -> None:
        """Note that the client does not read its answer."""
        self.stalled = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that the client reads its answer."""
        self.stalled = None
        super().resume_writing()

    def is_overdue(self, now: float, seconds: float) -> bool:
        """Return True if the client has not sent a request, or not read an answer, within that time."""
        return any(since is not None and now - since > seconds for since in (self.began, self.stalled))


def _path(url: bytes) -> str:
    """Return the path as the application sees it: without an address before it, and decoded."""
    path = url.partition(b"?")[0]
    if not path.startswith(b"/"):
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    return unquote(path.decode("latin-1")) if b"%" in path else path.decode("latin-1")


def connections(admissions: Mapping[str, Admission], header_bytes: int) -> type[Connection]:
    """Return the class of the connections of one server."""
    return type("ServerConnection", (Connection,), {"admissions": admissions, "header_bytes": header_bytes})


async def sweep(all_connections: Callable[[], set[Any]], seconds: float) -> None:
    """Close connections that are slow to send a request or to read an answer, until cancelled."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        now = time.monotonic()
        for one in list(all_connections()):
            if isinstance(one, Connection) and one.is_overdue(now, seconds):
                one.transport.abort()
