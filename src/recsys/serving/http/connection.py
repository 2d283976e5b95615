"""HTTP connection of a server: admission before a request is read, limits of headers and time. Imports no torch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import Any, ClassVar
from urllib.parse import unquote

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from recsys.serving.http.admission import Admission
from recsys.serving.http.problems import Problem
from recsys.serving.http.refusal import (
    FRESH_SECONDS,
    LEAST_PAUSE,
    MOST_PAUSE,
    OVERLOADED_ANSWER,
    path_of_post,
    pause_of,
    raw_answer,
)

# Seconds from the end of a request until its place is given to a refused connection.
FILL_SECONDS = 0.002
# Bytes of one connection that are parsed in one turn of the event loop.
_PARSED = 32 << 10
# Requests of a connection that may wait for the answer to an earlier one; no usual client sends any.
_PIPELINED = 64


class Connection(HttpToolsProtocol):
    """uvicorn's connection with admission, a limit of the headers, and cancellation of requests whose client left.

    A request of a path in `admissions` that finds too many before it is refused before its task is made. Made by
    `connections`, because uvicorn constructs it.
    """

    admissions: Mapping[str, Admission] = {}
    header_bytes = 32 << 10
    # The same by bytes, so that most paths need not be decoded, and each limit once.
    _by_url: Mapping[bytes, Admission] = {}
    _limits: Collection[Admission] = ()
    # Connections of the server that are not read at the moment, in the order of their refusals.
    paused: ClassVar[dict[Connection, asyncio.TimerHandle]] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin: the first request must arrive in time."""
        super().connection_made(transport)
        self.began: float | None = time.monotonic()
        # Bytes of the body that is being received.
        self.received = 0
        self.stalled: float | None = None
        # The request that is being answered: uvicorn knows only the last one of several.
        self._task: asyncio.Task[None] | None = None
        self._answered: RequestResponseCycle | None = None
        # Admission of the request that is being received, and of the one that is in progress.
        self._wanted: Admission | None = None
        self._admitted: Admission | None = None
        self._refused, self._in_headers, self._read_bytes = False, True, 0
        self._refused_by: Admission | None = None
        self._in_message, self._paused_at = False, 0.0
        # Until when what arrives was sent during a pause.
        self._old_until = 0.0
        self._is_wanted = False
        self._unparsed = b""

    def data_received(self, data: bytes) -> None:
        """Read a part of a request, a little in each turn of the loop; too many bytes of headers end the connection."""
        if self._unparsed:
            self._unparsed += data
        elif self._in_message or not self._is_refused_unread(data):
            self._unparsed = data
            self._parse_some()

    def _parse_some(self) -> None:
        data, self._unparsed = self._unparsed[:_PARSED], self._unparsed[_PARSED:]
        self._read_bytes += len(data)
        super().data_received(data)
        if self._read_bytes > self.header_bytes:
            self._refuse_headers()
        if self.transport.is_closing():
            self._unparsed = b""
        elif self._unparsed:
            self.transport.pause_reading()
            self.loop.call_soon(self._parse_rest)

    def _parse_rest(self) -> None:
        if self._unparsed:
            self._parse_some()
        if not (self._unparsed or self.flow.read_paused or self.transport.is_closing()):
            self.transport.resume_reading()

    def on_message_begin(self) -> None:
        """Begin a request; too many at once end the connection."""
        if len(self.pipeline) >= _PIPELINED:
            self._give_up_answer()
            self.transport.abort()
            raise ValueError("too many requests at once")
        super().on_message_begin()
        self.began, self.received = time.monotonic(), 0
        self._refused, self._refused_by, self._in_headers, self._in_message = False, None, True, True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; what follows a body decides nothing."""
        if self._in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Refuse or start a request."""
        self._in_headers, self._read_bytes = False, 0
        if self.transport.is_closing():
            self._refused = True
            return
        if len(self.url) + sum([len(name) + len(value) for name, value in self.headers]) > self.header_bytes:
            self._refused = True
            self._refuse_headers()
            return
        # A refusal must not overtake the answer to an earlier request of the connection.
        if self.cycle is None or self.cycle.response_complete:
            admission = self._by_url.get(self.url) or self.admissions.get(_path(self.url))
            if admission is not None and self._must_refuse(admission):
                admission.refuse()
                self._refused, self._refused_by = True, admission
                self.transport.write(OVERLOADED_ANSWER)
                return
            self._wanted = admission
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body, unless the request was refused."""
        self._read_bytes = 0
        if not self._refused:
            self.received += len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request; a refused connection pauses, or closes if its client asked for that."""
        self.began, self._in_message = None, False
        if not self._refused:
            # Half a request takes no place, or slow clients could take them all.
            if self._wanted is not None:
                self._wanted.enter()
                self._admitted, self._wanted = self._wanted, None
            super().on_message_complete()
        elif self._refused_by is not None and self.parser.should_keep_alive():
            self._pause(self._refused_by)
        else:
            self.transport.close()

    def _must_refuse(self, admission: Admission) -> bool:
        if admission.is_full:
            return True
        # Only a connection that was paused has such a time.
        is_old = self._old_until > 0 and self._old_until > self.loop.time()
        return is_old and admission.was_full_within(MOST_PAUSE)

    def _is_refused_unread(self, data: bytes) -> bool:
        """Refuse a whole, plain request without parsing it, which takes a fifth of the time."""
        # Most requests are not refused, and this is known without a look at their headers.
        if not (self._old_until or any([one.in_progress >= one.limit for one in self._limits])):
            return False
        if not (self.cycle is None or self.cycle.response_complete):
            return False
        admission = self.admissions.get(path_of_post(data, self.header_bytes) or "")
        if admission is None or not self._must_refuse(admission):
            return False
        self._unset_keepalive_if_required()
        admission.refuse()
        self.transport.write(OVERLOADED_ANSWER)
        self.began = None
        self._pause(admission)
        return True

    def _pause(self, admission: Admission) -> None:
        # A connection that was read to fill a place may send another request for it.
        is_wanted = self._is_wanted and not admission.is_full
        self._is_wanted, self._old_until = False, 0.0
        if not is_wanted and not self.transport.is_closing():
            self.flow.pause_reading()
            self._paused_at = self.loop.time()
            self.paused[self] = self.loop.call_later(pause_of(len(self.paused)), self._end_pause)

    def _end_pause(self) -> None:
        del self.paused[self]
        self._read_again()

    def _read_again(self) -> None:
        if self.transport.is_closing():
            return
        now = self.loop.time()
        self._old_until = now + LEAST_PAUSE if now - self._paused_at > FRESH_SECONDS else 0.0
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
            self.transport.write(raw_answer(problem, b"431 Request Header Fields Too Large", b"connection: close"))
            self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
        self._task, self._answered = task, cycle

    def on_response_complete(self) -> None:
        """End a request."""
        self._wanted = None
        self._leave()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the request of a client that left, unless it changes the server."""
        if self._admitted is not None and self._task is not None:
            self._task.cancel()
        self._leave()
        self._give_up_answer()
        self._unparsed = b""
        if (timer := self.paused.pop(self, None)) is not None:
            timer.cancel()
        super().connection_lost(exc)

    def _give_up_answer(self) -> None:
        """Write no answer to a connection that is closed."""
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def _leave(self) -> None:
        if self._admitted is None:
            return
        self._admitted.leave()
        if self.paused:
            # After the answered clients had their turn.
            self.loop.call_later(FILL_SECONDS, self._fill, self._admitted)
        self._admitted = None

    def _fill(self, admission: Admission) -> None:
        """Read the connection that was refused last if there is room, because its request has waited least."""
        if self.paused and not admission.is_full:
            newest, timer = self.paused.popitem()
            timer.cancel()
            newest._is_wanted = True
            newest._read_again()

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
        began, stalled = self.began, self.stalled
        return (began is not None and now - began > seconds) or (stalled is not None and now - stalled > seconds)


def _path(url: bytes) -> str:
    """Return the path as the application sees it: without an address before it, and decoded."""
    path = url.partition(b"?")[0]
    if not path.startswith(b"/"):
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    return unquote(path.decode("latin-1")) if b"%" in path else path.decode("latin-1")


def connections(admissions: Mapping[str, Admission], header_bytes: int) -> type[Connection]:
    """Return the class of the connections of one server."""
    own: dict[str, Any] = {"admissions": admissions, "header_bytes": header_bytes, "paused": {}}
    own["_limits"] = set(admissions.values())
    own["_by_url"] = {path.encode(): admission for path, admission in admissions.items()}
    return type("ServerConnection", (Connection,), own)
