"""The addresses of the API: what each role answers. Imports no torch."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Any

from recsys.core.errors import UserError
from recsys.serving.events import StoreError, parse_events
from recsys.serving.gateway.gateway import Gateway
from recsys.serving.gateway.tower_cache import TowerCache
from recsys.serving.host.host import Host
from recsys.serving.http.app import Handler, Reply, Request, Routes, json_reply
from recsys.serving.http.messages import (
    Decoder,
    EventsResponse,
    RetrieveRequest,
    SearchRequest,
    Status,
    VersionRequest,
)
from recsys.serving.http.problems import (
    Problem,
    bad_request,
    forbidden,
    from_user_error,
    too_large,
    unauthorized,
    unavailable,
)
from recsys.serving.observability.metrics import CONTENT_TYPE, Metrics

_retrieve = Decoder(RetrieveRequest | list[RetrieveRequest])
_search = Decoder(SearchRequest)
_version = Decoder(VersionRequest)
_anything = Decoder(Any)


class Health:
    """Is the process up, and would it answer?

    Args:
        ready: raises Problem (503) where it would not.
    """

    def __init__(self, ready: Callable[[], Awaitable[None]]) -> None:
        self._ready = ready
        # From when the server was told to end: it answers what comes, and asks for no more.
        self.is_draining = False

    def routes(self) -> Routes:
        """/healthz and /readyz."""
        return {"/healthz": {"GET": self._healthz}, "/readyz": {"GET": self._readyz}}

    async def _healthz(self, request: Request) -> Reply:  # noqa: ARG002
        return json_reply(Status("ok"))

    async def _readyz(self, request: Request) -> Reply:  # noqa: ARG002
        if self.is_draining:
            raise unavailable("the server is about to end")
        await self._ready()
        return json_reply(Status("ready"))


def metrics_routes(metrics: Metrics) -> Routes:
    """/metrics, for Prometheus."""

    async def expose(request: Request) -> Reply:  # noqa: ARG001
        return Reply(metrics.expose(), 200, CONTENT_TYPE.encode())

    return {"/metrics": {"GET": expose}}


class GatewayRoutes:
    """What a gateway answers.

    Args:
        gateway: retrieves.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> Routes:
        """/v1/retrieve, /v1/events and /v1/hosts."""
        return {
            "/v1/retrieve": {"POST": self._retrieve},
            "/v1/events": {"POST": self._events},
            "/v1/hosts": {"GET": self._hosts},
        }

    async def _retrieve(self, request: Request) -> Reply:
        asked = _retrieve(request.body)
        if isinstance(asked, RetrieveRequest):
            found = await self._gateway.retrieve(asked)
            with self._gateway.metrics.timed("answer"):
                return json_reply(found)
        if len(asked) > self._gateway.limits.batch:
            raise too_large(f"found {len(asked)} requests, expected at most {self._gateway.limits.batch}")
        answers = await asyncio.gather(*map(self._gateway.retrieve, asked), return_exceptions=True)
        for number, answer in enumerate(answers):
            if isinstance(answer, UserError):
                raise _within(from_user_error(answer), number)
            if isinstance(answer, BaseException):
                raise answer
        return json_reply(answers)

    async def _events(self, request: Request) -> Reply:
        posted = _anything(request.body)
        if isinstance(posted, list) and len(posted) > self._gateway.limits.batch:
            raise too_large(f"found {len(posted)} events, expected at most {self._gateway.limits.batch}")
        names = await self._gateway.event_names()
        events = parse_events(posted, names, int(time.time()))
        try:
            # Returns only when they are durable.
            await asyncio.to_thread(self._gateway.events.append, events)
        except StoreError as error:
            raise unavailable(str(error)) from error
        self._gateway.metrics.stored_events.inc(len(events))
        return json_reply(EventsResponse(len(events)))

    async def _hosts(self, request: Request) -> Reply:  # noqa: ARG002
        return json_reply(self._gateway.router.hosts())


class HostRoutes:
    """What an ANN host answers.

    Args:
        host: searches.
        k: items of an answer, at most.
    """

    def __init__(self, host: Host, k: int) -> None:
        self._host, self._k = host, k

    def routes(self) -> Routes:
        """/v1/version and /v1/search."""
        return {"/v1/version": {"GET": self._version}, "/v1/search": {"POST": self._search}}

    async def _version(self, request: Request) -> Reply:  # noqa: ARG002
        return json_reply(self._host.version())

    async def _search(self, request: Request) -> Reply:
        asked = _search(request.body)
        if asked.k > self._k:
            raise bad_request(f"k: found {asked.k}, expected at most {self._k}", "k")
        return json_reply(await self._host.answer(asked))


class AdminRoutes:
    """What changes a host; needs a token.

    Args:
        host: is changed.
        token: that calls must bear; None: there are no such calls.
        towers: of the gateway in the same process, which must have a version's tower before it is served.
    """

    def __init__(self, host: Host, token: str | None, towers: TowerCache | None) -> None:
        self._host, self._token, self._towers = host, token, towers

    def routes(self) -> Routes:
        """/v1/admin/load, serve and unload."""
        handlers = {"load": self._load, "serve": self._serve, "unload": self._unload}
        return {f"/v1/admin/{name}": {"POST": guarded(handler, self._token)} for name, handler in handlers.items()}

    async def _load(self, request: Request) -> Reply:
        asked: VersionRequest = _version(request.body)
        version = await asyncio.to_thread(self._host.load, asked.version)
        if self._towers is not None:
            await self._towers.get(version)
        return json_reply(self._host.version())

    async def _serve(self, request: Request) -> Reply:
        asked: VersionRequest = _version(request.body)
        self._host.require(asked.version, asked.model)
        if self._towers is not None:
            await self._towers.get(asked.version)
        self._host.serve(asked.version, asked.model)
        return json_reply(self._host.version())

    async def _unload(self, request: Request) -> Reply:
        asked: VersionRequest = _version(request.body)
        self._host.unload(asked.version, asked.model)
        return json_reply(self._host.version())


def guarded(handler: Handler, token: str | None) -> Handler:
    """A handler that answers only calls with `Authorization: Bearer TOKEN`."""

    async def check(request: Request) -> Reply:
        if token is None:
            raise forbidden("admin calls need admin_token= (or RECSYS_ADMIN_TOKEN), and this server has none")
        given = request.header(b"authorization") or b""
        if not hmac.compare_digest(given, b"Bearer " + token.encode()):
            raise unauthorized("expected the header `Authorization: Bearer TOKEN` with the token of this server")
        return await handler(request)

    return check


def _within(problem: Problem, number: int) -> Problem:
    """The problem of one request of a list."""
    field = f"[{number}]" + (f".{problem.field}" if problem.field else "")
    return Problem(problem.status, problem.code, f"[{number}]: {problem.message}", field)
