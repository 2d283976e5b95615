"""The HTTP application: Starlette, with the limits, request ids and errors of the API. Imports no torch."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recsys.core.errors import UserError
from recsys.serving.host.desired_state import ROLLOUT_HEADER, rollout_token
from recsys.serving.http.access import ANSWER_PROOF, REQUEST_PROOF, Access, check_single
from recsys.serving.http.admission import DEADLINE_HEADER, Admission, set_deadline
from recsys.serving.http.codec import Decoder, QueryDecoder, encode
from recsys.serving.http.endpoint import ADMIN, JSON, Endpoint
from recsys.serving.http.messages import error_response
from recsys.serving.http.problems import Problem, from_user_error, not_found, too_large
from recsys.serving.observability.logs import new_request_id, request_id

log = logging.getLogger("recsys")
# One line for each admin call: the address, the caller, and what was asked.
audit = logging.getLogger("recsys.audit")
_AUDITED = 500
# Answers of a list that are encoded in one turn of the event loop.
_ENCODED = 64

Hook = Callable[[], Awaitable[None]]
# Called after every response with the path of its route, the HTTP status and the seconds from request to response.
Observer = Callable[[str, int, float], None]
# Returns a context that measures a stage of a retrieval.
Timer = Callable[[str], AbstractContextManager[None]]
# Label of requests that match no route, so that made-up paths do not become metric series.
OTHER = "other"
_DEADLINE, _ROLLOUT = DEADLINE_HEADER.encode(), ROLLOUT_HEADER.encode()


class App(Starlette):
    """The HTTP application of one server. `timed` measures the encoding of responses whose row names a stage.

    `admissions` limit the requests in progress of some paths, which the connections of the server read. Without a
    token all admin calls are refused. Hooks run in order: `start` when the server starts, `stop` after the
    last accepted request was answered. `tls` is the context of its connections; None without TLS.
    """

    tls: ssl.SSLContext | None = None
    # Port to which admin calls are limited; None if every port of the server answers them.
    admin_port: int | None = None

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        body_bytes: int,
        access: Access | None = None,
        token: str | None = None,
        pages: Sequence[BaseRoute] = (),
        observe: Observer | None = None,
        timed: Timer | None = None,
        start: Sequence[Hook] = (),
        stop: Sequence[Hook] = (),
        admissions: Mapping[str, Admission] | None = None,
    ) -> None:
        self.endpoints, self.admissions = tuple(endpoints), admissions or {}

        @asynccontextmanager
        async def lifespan(_: App) -> AsyncIterator[None]:
            for hook in start:
                await hook()
            yield
            for hook in stop:
                await hook()

        access = access or Access(admin=token)
        responders = [_Responder(one, body_bytes, access=access, timed=timed) for one in endpoints]
        routes = [Route(one.endpoint.path, one, methods=[one.endpoint.method]) for one in responders]
        super().__init__(routes=[*routes, *pages], lifespan=lifespan)
        # A trailing slash makes another address.
        self.router.redirect_slashes = False
        pages_and_errors = ExceptionMiddleware(self.router, handlers={HTTPException: _answer_http_exception})
        # Instead of Starlette's own stack, whose outermost part would wrap each request for nothing.
        self.middleware_stack = RequestContext(pages_and_errors, responders=responders, observe=observe, access=access)


class RequestContext:
    """ASGI middleware around everything else: request id, unexpected errors, log line and metrics of each request.

    A row of the route table is found by a dictionary, because the router tries its routes one after the other. The
    wrapped application answers everything else: pages, other methods and unknown addresses.
    """

    def __init__(
        self, app: ASGIApp, *, responders: Sequence[_Responder], observe: Observer | None, access: Access
    ) -> None:
        self._app, self._observe, self._access = app, observe, access
        self._responders = {(one.endpoint.method, one.endpoint.path): one for one in responders}
        for one in responders:
            if one.endpoint.method == "GET":
                self._responders["HEAD", one.endpoint.path] = one

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        given_headers = dict(scope["headers"])
        given = given_headers.get(b"x-request-id")
        identifier = new_request_id(given.decode("latin-1") if given else None)
        request_id.set(identifier)
        set_deadline(given_headers.get(_DEADLINE))
        status = 0
        proves = self._access.host is not None and REQUEST_PROOF.encode() in given_headers
        start: Message = {}

        async def send_with_id(message: Message) -> None:
            nonlocal status, start
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", identifier.encode())]
                if proves:
                    # The proof covers the body, which comes in one piece.
                    start = message
                    return
            elif start:
                proof = self._access.answer_proof(given_headers, status, message.get("body", b""))
                if proof is not None:
                    start["headers"] = [*start["headers"], (ANSWER_PROOF.encode(), proof.encode())]
                await send(start)
                start = {}
            await send(message)

        responder = self._responders.get((scope["method"], scope["path"]))
        try:
            if len(given_headers) < len(scope["headers"]):
                check_single(scope["headers"])
            self._access.check_place(given_headers)
            if scope["path"].startswith(ADMIN) and not _is_for_admin(scope):
                raise not_found(f"{scope['path']}: no such address")
            if responder is None:
                await self._app(scope, receive, send_with_id)
            else:
                await responder.answer(scope, receive, send_with_id, headers=given_headers)
        except UserError as error:
            await _response(from_user_error(error))(scope, receive, send_with_id)
        except (ClientDisconnect, asyncio.CancelledError):
            # The client left, or the server ends; nobody reads an answer.
            return
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if status:
                raise
            message = f"internal error; the server's log has it under {identifier}"
            problem = Problem(500, "internal", message=message)
            await _response(problem)(scope, receive, send_with_id)
        seconds = time.perf_counter() - begin
        log.debug("%s %s: %d in %.4f s", scope["method"], scope["path"], status, seconds)
        if self._observe is not None:
            route = scope.get("route") if responder is None else responder.endpoint
            self._observe(OTHER if route is None else route.path, status, seconds)


def _is_for_admin(scope: Scope) -> bool:
    wanted: int | None = scope["app"].admin_port
    return wanted is None or (scope.get("server") or (None, None))[1] == wanted


class _Responder:
    def __init__(self, endpoint: Endpoint, body_bytes: int, *, access: Access, timed: Timer | None) -> None:
        self.endpoint, self._body_bytes, self._access = endpoint, body_bytes, access
        reader = QueryDecoder if endpoint.method == "GET" else Decoder
        self._decode = None if endpoint.request is None else reader(endpoint.request)
        self._media_type = endpoint.media_type.encode()
        self._encode = encode if endpoint.media_type == JSON else bytes
        self._timed, self._stage = timed, endpoint.stage
        self._is_open = access.is_open(endpoint)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.answer(scope, receive, send, headers=dict(scope["headers"]))

    async def answer(self, scope: Scope, receive: Receive, send: Send, *, headers: Mapping[bytes, bytes]) -> None:
        """Answer one request, whose headers are given once more as a dictionary."""
        endpoint = self.endpoint
        content, body = scope["query_string"], b""
        if endpoint.method == "POST":
            content = body = await _read_body(headers, receive, self._body_bytes)
        if not self._is_open:
            self._access.check_caller(endpoint, headers, body)
        if endpoint.writes:
            _require_json(headers)
        if endpoint.is_admin:
            rollout = headers.get(_ROLLOUT)
            rollout_token.set(None if rollout is None else rollout.decode("latin-1"))
            caller = scope.get("client") or ("unknown", 0)
            asked = f"{len(body)} bytes" if endpoint.is_private else body[:_AUDITED].decode(errors="replace")
            audit.info("%s from %s: %s", endpoint.path, caller[0], asked)
        message = await (endpoint.handler() if self._decode is None else endpoint.handler(self._decode(content)))
        if isinstance(message, list) and len(message) > _ENCODED:
            body = await self._encode_list(message)
        else:
            with self._timed(self._stage) if self._timed and self._stage else nullcontext():
                body = self._encode(message)
        of_answer = [(b"content-type", self._media_type), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": of_answer})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _encode_list(self, messages: list[Any]) -> bytes:
        """Encode a long answer in several turns of the event loop."""
        parts = list[bytes]()
        for begin in range(0, len(messages), _ENCODED):
            with self._timed(self._stage) if self._timed and self._stage else nullcontext():
                parts.append(self._encode(messages[begin : begin + _ENCODED])[1:-1])
            await asyncio.sleep(0)
        return b"[%s]" % b",".join(parts)


def _require_json(headers: Mapping[bytes, bytes]) -> None:
    """Refuse other types: a page of another site can send them without asking the server first."""
    found = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if found != JSON:
        raise Problem(415, "unsupported_media_type", message=f"Content-Type: found {found[:60]!r}, expected {JSON}")


async def _read_body(headers: Mapping[bytes, bytes], receive: Receive, limit: int) -> bytes:
    length = headers.get(b"content-length")
    if length is not None and length.isdigit() and int(length) > limit:
        raise too_large(f"body: expected at most {limit} bytes")
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part: bytes = message.get("body", b"")
        if len(body) + len(part) > limit:
            raise too_large(f"body: expected at most {limit} bytes")
        if not message.get("more_body"):
            return bytes(body + part) if body else part
        body += part


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """Answer Starlette's own errors: no such address, no such method."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    if error.status_code == 404:
        return _response(not_found(f"{path}: no such address"))
    if error.status_code == 405:
        allowed = ", ".join(sorted((error.headers or {})["Allow"].split(", ")))
        message = f"{path}: found {request.method}, expected {allowed}"
        problem = Problem(405, "method_not_allowed", message=message)
        return _response(problem, allow=allowed)
    return _response(Problem(error.status_code, "http_error", message=error.detail))


def _response(problem: Problem, **headers: str) -> Response:
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    elif problem.status == 413:
        # The rest of the body is not read.
        headers["connection"] = "close"
    elif problem.status == 503:
        headers["retry-after"] = "1"
    return Response(encode(error_response(problem)), problem.status, headers, JSON)
