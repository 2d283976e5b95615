"""A small ASGI application: exact paths, limits, request ids, and errors as the contract has them. Imports no torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from recsys.core.errors import UserError
from recsys.serving.http.messages import encode, error_response
from recsys.serving.http.problems import Problem, from_user_error, not_found, too_large
from recsys.serving.observability.logs import new_request_id, request_id

log = logging.getLogger("recsys")

Headers = Sequence[tuple[bytes, bytes]]
JSON = b"application/json"


class Request(NamedTuple):
    """What a handler gets.

    Attributes:
        method: GET or POST.
        path: without the query.
        query: what follows the question mark.
        headers: names in lower case.
        body: whole.
        request_id: of the caller, or made here; goes into logs and the answer.
    """

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    request_id: str

    def header(self, name: bytes) -> bytes | None:
        """The first header of that name."""
        return next((value for key, value in self.headers if key == name), None)


class Reply(NamedTuple):
    """What a handler gives."""

    body: bytes
    status: int = 200
    content_type: bytes = JSON
    headers: Headers = ()


Handler = Callable[[Request], Awaitable[Reply]]
# Path -> method -> handler.
Routes = Mapping[str, Mapping[str, Handler]]
# Called after every answer with the request, the answer and the seconds that it took.
Observer = Callable[[Request, Reply, float], None]
Hook = Callable[[], Awaitable[None]]


class Gone(Exception):  # noqa: N818 (no error: nobody is there to hear of it)
    """The caller went away before the request was whole."""


class App:
    """Routes requests to handlers.

    Args:
        routes: by path and method.
        body_bytes: of a request, at most.
        observers: of every answer.
        start, stop: called in order when the server starts, and when it has answered what it accepted.
    """

    def __init__(
        self,
        routes: Routes,
        body_bytes: int,
        observers: Sequence[Observer] = (),
        start: Sequence[Hook] = (),
        stop: Sequence[Hook] = (),
    ) -> None:
        self.routes, self.body_bytes, self.observers = routes, body_bytes, observers
        self._start, self._stop = start, stop

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """As ASGI 3 has it."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._respond(scope, receive, send)
        else:
            raise NotImplementedError(f"{scope['type']} is not served")

    async def _respond(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        begin = time.perf_counter()
        headers: Headers = scope["headers"]
        method = scope["method"]
        given = next((value for name, value in headers if name == b"x-request-id"), b"").decode("latin-1")
        request = Request(method, scope["path"], scope["query_string"], headers, b"", new_request_id(given))
        request_id.set(request.request_id)
        try:
            handler = self._handler(request)
            if method == "POST":
                request = request._replace(body=await self._body(headers, receive))
            reply = await handler(request)
        except Gone:
            return
        except UserError as error:
            reply = reply_to(from_user_error(error))
        except Exception:
            log.exception("%s %s failed", method, request.path)
            reply = reply_to(Problem(500, "internal", f"internal error; the log has it under {request.request_id}"))
        body = reply.body
        answered = [
            (b"content-type", reply.content_type),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request.request_id.encode()),
            *reply.headers,
        ]
        await send({"type": "http.response.start", "status": reply.status, "headers": answered})
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})
        seconds = time.perf_counter() - begin
        log.debug("%s %s: %d in %.4f s", method, request.path, reply.status, seconds)
        for observer in self.observers:
            observer(request, reply, seconds)

    def _handler(self, request: Request) -> Handler:
        methods = self.routes.get(request.path)
        if methods is None:
            raise not_found(f"{request.path}: no such address")
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            allowed = ", ".join(sorted(methods))
            raise MethodNotAllowed(f"{request.path}: found {request.method}, expected {allowed}", allowed)
        return handler

    async def _body(self, headers: Headers, receive: Any) -> bytes:
        for name, value in headers:
            if name == b"content-length" and value.isdigit() and int(value) > self.body_bytes:
                raise self._too_large()
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message["body"]
            if len(body) > self.body_bytes:
                raise self._too_large()
            return body
        parts, size = [], 0
        while True:
            if message["type"] == "http.disconnect":
                raise Gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.body_bytes:
                raise self._too_large()
            if not message.get("more_body"):
                return b"".join(parts)
            message = await receive()

    def _too_large(self) -> Problem:
        return too_large(f"body: expected at most {self.body_bytes} bytes")

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        try:
            for hook in self._start:
                await hook()
        except Exception as error:
            log.exception("cannot start")
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for hook in self._stop:
            await hook()
        await send({"type": "lifespan.shutdown.complete"})


class MethodNotAllowed(Problem):
    """405, with the methods that are allowed."""

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(405, "method_not_allowed", message)
        self.allowed = allowed


def reply_to(problem: Problem) -> Reply:
    """The answer that tells a problem."""
    headers: Headers = ()
    if isinstance(problem, MethodNotAllowed):
        headers = ((b"allow", problem.allowed.encode()),)
    elif problem.status == 401:
        headers = ((b"www-authenticate", b"Bearer"),)
    elif problem.status == 413:
        # The rest of the body is not read.
        headers = ((b"connection", b"close"),)
    return Reply(encode(error_response(problem)), problem.status, JSON, headers)


def json_reply(message: Any) -> Reply:
    """A message as the answer."""
    return Reply(encode(message))
