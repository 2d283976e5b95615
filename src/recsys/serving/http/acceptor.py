"""Accepts connections in a thread, and answers `/healthz` and `/readyz` in another one. Imports no torch.

A connection goes to the event loop when its first request has arrived. So health is known while the loop is busy, and a
connection that sends nothing, or half of a request, costs the loop nothing. While the server has too many requests, new
connections are refused here too: clients that give up and connect again cost the loop nothing either.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import queue
import selectors
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Protocol

from recsys.serving.http.admission import Admission
from recsys.serving.http.codec import encode
from recsys.serving.http.messages import Status, error_response
from recsys.serving.http.problems import Problem
from recsys.serving.http.refusal import (
    FRESH_SECONDS,
    MOST_PAUSE,
    OVERLOADED_ANSWER,
    PLAIN_BYTES,
    missing_bytes,
    path_of_post,
    pause_of,
)

log = logging.getLogger("recsys")

# Returns None if the server is ready, or the reason why not.
Check = Callable[[], Problem | None]

BACKLOG = 2048
# Connections accepted between two looks at those that have sent something.
_ACCEPTED = 64
# Seconds between two looks at silent connections, between two log lines of one kind, and for one health request.
_LOOK_SECONDS, _LOG_SECONDS, _HEALTH_SECONDS = 0.25, 10.0, 2.0
# Seconds between two looks while refused connections rest, and the number of them that a look may wake early.
_REST_LOOK_SECONDS, _REST_LOOKS = 0.01, 4
# Bytes of a first look: most requests have fewer.
_LOOK_BYTES = 4096
_HEALTH = tuple(f"{method} /{path} ".encode() for method in ("GET", "HEAD") for path in ("healthz", "readyz"))
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class TakesConnection(Protocol):
    """Takes a connection, and is told whether its first request is whole, and the limit of that request."""

    def __call__(self, opened: socket.socket, *, is_whole: bool, admission: Admission | None) -> None:
        """Take a connection."""


class Acceptor:
    """Accepts the connections of one listening socket until it is closed.

    Args:
        listening: bound socket.
        hand_over: takes a connection whose first request has arrived; called in the thread of the acceptor.
        num_open: returns the number of connections that were taken and are still open.
        num_pending: returns the number of requests of an admission that were handed over and have not begun.
        ready: readiness of the server, asked in the thread of health.
        most: maximum number of open connections. Beyond it, the connection that waits for longest is closed.
        seconds: time in which the first request must arrive.
        admissions: limits of paths. A plain request that finds its limit reached is refused.
        header_bytes: longest head of a request.
        peek: false to hand over connections at once, because TLS hides what they send.
    """

    def __init__(
        self,
        listening: socket.socket,
        hand_over: TakesConnection,
        *,
        num_open: Callable[[], int],
        num_pending: Callable[[Admission], int] = lambda _: 0,
        ready: Check,
        most: int = 10_000,
        seconds: float = 10.0,
        admissions: Mapping[str, Admission] | None = None,
        header_bytes: int = 32 << 10,
        peek: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listening, self._hand_over, self._num_open, self._ready = listening, hand_over, num_open, ready
        self._most, self._seconds, self._peek, self._clock = most, seconds, peek, clock
        self._admissions, self._num_pending, self._header_bytes = admissions or {}, num_pending, header_bytes
        # Refused connections that are not read: until when, by which limit, and since when; the last refused one last.
        self._resting: OrderedDict[socket.socket, tuple[float, Admission, float]] = OrderedDict()
        # Those that are read again after a rest, so that their requests are old; true if they are to fill a place.
        self._old: dict[socket.socket, bool] = {}
        self._silent: OrderedDict[socket.socket, float] = OrderedDict()
        # Those that have sent a part of a request, and the bytes that are awaited.
        self._half: dict[socket.socket, int] = {}
        self._selector = selectors.DefaultSelector()
        self._logged = self._woken_at = -float("inf")
        self._health: queue.SimpleQueue[socket.socket | None] = queue.SimpleQueue()
        self._wake, self._woken = socket.socketpair()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("accept", self._work), ("health", self._answer_health))
        ]

    def start(self) -> None:
        """Listen, and accept connections."""
        self._listening.setblocking(False)
        self._listening.listen(BACKLOG)
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Accept no more connections, and close those that have sent nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._wake.send(b"x")
            self._health.put(None)
            self._threads[0].join()
            self._listening.close()

    async def wait_closed(self) -> None:
        """Do nothing: `close` waits already."""

    def _work(self) -> None:
        while not self._is_closed:
            for key, _ in self._selector.select(_REST_LOOK_SECONDS if self._resting else _LOOK_SECONDS):
                opened = key.fileobj
                assert isinstance(opened, socket.socket)
                if opened is self._listening:
                    self._accept_some()
                elif opened is not self._woken:
                    self._look(opened)
            self._end_rests()
            self._close_overdue()
        for opened in list(self._silent):
            self._drop(opened)
        for opened in self._resting:
            opened.close()
        self._selector.close()

    def _accept_some(self) -> None:
        for _ in range(_ACCEPTED):
            if len(self._silent) + len(self._resting) + self._num_open() >= self._most:
                self._warn("%d connections are open: the silent ones are closed", self._most)
                if not self._drop_oldest():
                    # The kernel keeps those that wait.
                    time.sleep(0.01)
                    return
            try:
                opened, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_DESCRIPTORS:
                    self._warn("no connection can be accepted (%s); %d are open", error.strerror, self._num_open())
                    if not self._drop_oldest():
                        time.sleep(0.01)
                # Otherwise the client has left already.
                return
            opened.setblocking(False)
            with contextlib.suppress(OSError):
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not self._peek:
                self._hand_over(opened, is_whole=False, admission=None)
                continue
            self._watch(opened)

    def _look(self, opened: socket.socket) -> None:
        """Pass on a connection that has sent a request."""
        if opened not in self._silent:
            return
        try:
            begin = opened.recv(_LOOK_BYTES, socket.MSG_PEEK)
            if len(begin) == _LOOK_BYTES:
                begin = opened.recv(PLAIN_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            begin = b""
        missing = missing_bytes(begin, self._header_bytes)
        if not begin or (missing and opened in self._half and len(begin) < self._half[opened]):
            # The client left, also in the middle of a request.
            self._drop(opened)
            return
        if missing:
            # The kernel does not report the connection before so many bytes are there.
            self._half[opened] = len(begin) + missing
            _report_from(opened, self._half[opened])
            return
        if opened in self._half:
            _report_from(opened, 1)
        is_old = self._old.get(opened)
        self._forget(opened)
        admission = self._admissions.get(path_of_post(begin, len(begin)) or "")
        is_full = admission is not None and admission.in_progress + self._num_pending(admission) >= admission.limit
        if admission is not None and (is_full or (is_old is not None and admission.was_full_within(MOST_PAUSE))):
            self._refuse(opened, len(begin), admission, is_wanted=bool(is_old) and not is_full)
        elif begin.startswith(_HEALTH) and missing == 0:
            self._health.put(opened)
        else:
            self._hand_over(opened, is_whole=missing == 0, admission=admission)

    def _watch(self, opened: socket.socket) -> None:
        self._silent[opened] = self._clock()
        self._selector.register(opened, selectors.EVENT_READ)

    def _refuse(self, opened: socket.socket, size: int, admission: Admission, *, is_wanted: bool) -> None:
        """Answer that the server is overloaded, and read the connection again: after a pause unless it is wanted."""
        admission.refused += 1
        try:
            opened.recv(size)
            opened.send(OVERLOADED_ANSWER)
        except OSError:
            # The client left.
            opened.close()
            return
        if is_wanted:
            self._watch(opened)
            return
        now = self._clock()
        self._resting[opened] = now + pause_of(len(self._resting)), admission, now

    def _end_rests(self) -> None:
        """Read connections again: those that rested long enough, and the last refused ones if there is room."""
        now = self._clock()
        while self._resting and next(iter(self._resting.values()))[0] <= now:
            opened, _ = self._resting.popitem(last=False)
            self._old[opened] = False
            self._watch(opened)
        if not self._resting or now - self._woken_at < _REST_LOOK_SECONDS:
            return
        # The last refused ones have waited least.
        self._woken_at = now
        _, (_, admission, _) = next(reversed(self._resting.items()))
        room = min(_REST_LOOKS, int(0.9 * admission.limit) - admission.in_progress - self._num_pending(admission))
        for _ in range(min(len(self._resting), room)):
            opened, (_, _, refused_at) = self._resting.popitem()
            if now - refused_at > FRESH_SECONDS:
                self._old[opened] = True
            self._watch(opened)

    def _close_overdue(self) -> None:
        limit = self._clock() - self._seconds
        while self._silent and next(iter(self._silent.values())) < limit:
            self._drop_oldest()

    def _drop_oldest(self) -> bool:
        oldest = next(iter(self._silent), None)
        if oldest is not None:
            self._drop(oldest)
        return oldest is not None

    def _drop(self, opened: socket.socket) -> None:
        self._forget(opened)
        opened.close()

    def _forget(self, opened: socket.socket) -> None:
        del self._silent[opened]
        self._old.pop(opened, None)
        self._half.pop(opened, None)
        self._selector.unregister(opened)

    def _warn(self, message: str, *values: object) -> None:
        now = self._clock()
        if now - self._logged >= _LOG_SECONDS:
            self._logged = now
            log.warning(message, *values)

    def _answer_health(self) -> None:
        while (opened := self._health.get()) is not None:
            # A client that left, or does not read, does not matter.
            with contextlib.suppress(OSError), opened:
                opened.settimeout(_HEALTH_SECONDS)
                # The request is read, because closing a socket with unread bytes resets the connection.
                opened.sendall(self._health_answer(opened.recv(4096)))

    def _health_answer(self, head: bytes) -> bytes:
        method, path, _ = head.split(b" ", 2)
        problem = self._ready() if path == b"/readyz" else None
        line = b"200 OK" if problem is None else b"503 Service Unavailable\r\nretry-after: 1"
        body = encode(Status("ready" if path == b"/readyz" else "ok") if problem is None else error_response(problem))
        headers = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        return b"HTTP/1.1 %s\r\n%s%s" % (line, headers, b"" if method == b"HEAD" else body)


def _report_from(opened: socket.socket, size: int) -> None:
    """Let the kernel report a connection from so many bytes on."""
    # Some systems refuse it if the client has left; then the next look ends the connection.
    with contextlib.suppress(OSError):
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
