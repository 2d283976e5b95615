"""Rows of the route table for gateways, hosts and the process itself. Imports no torch."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Sequence

from recsys.core.errors import UserError
from recsys.serving.events import StoreError, parse_events
from recsys.serving.gateway.gateway import Gateway
from recsys.serving.gateway.tower_cache import TowerCache
from recsys.serving.host.host import Host
from recsys.serving.http.endpoint import Endpoint
from recsys.serving.http.messages import (
    EventsResponse,
    Hosts,
    PostedEvents,
    RetrieveRequest,
    RetrieveResponse,
    SearchRequest,
    SearchResponse,
    Status,
    VersionRequest,
    Versions,
)
from recsys.serving.http.problems import Problem, bad_request, from_user_error, too_large, unavailable
from recsys.serving.observability.metrics import CONTENT_TYPE, Metrics

# Statuses of every admin call.
ADMIN_ERRORS = (400, 401, 403, 409, 413)


class Health:
    """Liveness and readiness of the process.

    Args:
        ready: raises Problem (503) if the server could not answer.
    """

    def __init__(self, ready: Callable[[], Awaitable[None]]) -> None:
        self._ready = ready
        # Set on shutdown: the server still answers, but /readyz fails.
        self.is_draining = False

    def endpoints(self) -> list[Endpoint]:
        """Return /healthz and /readyz."""
        return [
            Endpoint(method="GET", path="/healthz", handler=self.healthz, summary="Whether the process is up"),
            Endpoint(
                method="GET",
                path="/readyz",
                handler=self.readyz,
                summary="Whether the server can answer requests",
                errors=(503,),
            ),
        ]

    async def healthz(self) -> Status:
        """Return ok."""
        return Status("ok")

    async def readyz(self) -> Status:
        """Return ready, or raise Problem (503)."""
        if self.is_draining:
            raise unavailable("the server is about to end")
        await self._ready()
        return Status("ready")


def metrics_endpoint(metrics: Metrics) -> Endpoint:
    """Return /metrics."""

    async def expose() -> bytes:
        return metrics.expose()

    return Endpoint(
        method="GET", path="/metrics", handler=expose, summary="Metrics for Prometheus", media_type=CONTENT_TYPE
    )


class GatewayRoutes:
    """Retrieval and events.

    Args:
        gateway: the gateway of the process.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def endpoints(self) -> list[Endpoint]:
        """Return /v1/retrieve, /v1/events and /v1/hosts."""
        return [
            Endpoint(
                method="POST",
                path="/v1/retrieve",
                handler=self.retrieve,
                summary="Ranked items for one user, or for each of several",
                errors=(400, 409, 413, 503),
                timed=functools.partial(self._gateway.metrics.timed, "answer"),
            ),
            Endpoint(
                method="POST",
                path="/v1/events",
                handler=self.events,
                summary="Store an event, or several; durable when acknowledged, and used by the next retrieve",
                errors=(400, 413, 503),
            ),
            Endpoint(
                method="GET",
                path="/v1/hosts",
                handler=self.hosts,
                summary="Host -> model -> versions; null for a host that does not answer",
            ),
        ]

    async def retrieve(
        self, request: RetrieveRequest | list[RetrieveRequest]
    ) -> RetrieveResponse | list[RetrieveResponse]:
        """Answer one request, or a list of them; one wrong request of a list refuses the list."""
        if isinstance(request, RetrieveRequest):
            return await self._gateway.retrieve(request)
        self._check_length(request, "requests")
        answers: list[RetrieveResponse] = []
        outcomes = await asyncio.gather(*map(self._gateway.retrieve, request), return_exceptions=True)
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, UserError):
                raise _in_list(from_user_error(outcome), number)
            if isinstance(outcome, BaseException):
                raise outcome
            answers.append(outcome)
        return answers

    async def events(self, posted: PostedEvents) -> EventsResponse:
        """Store events; returns when they are durable."""
        if isinstance(posted, list):
            self._check_length(posted, "events")
        names = await self._gateway.event_names()
        events = parse_events(posted, names, now=int(time.time()))
        try:
            await asyncio.to_thread(self._gateway.events.append, events)
        except StoreError as error:
            raise unavailable(str(error)) from error
        self._gateway.metrics.stored_events.inc(len(events))
        return EventsResponse(len(events))

    async def hosts(self) -> Hosts:
        """Return the versions of every host."""
        return self._gateway.router.hosts()

    def _check_length(self, posted: Sequence[object], name: str) -> None:
        limit = self._gateway.limits.batch
        if len(posted) > limit:
            raise too_large(f"found {len(posted)} {name}, expected at most {limit}")


class HostRoutes:
    """Search in the indexes of an ANN host.

    Args:
        host: the host of the process.
        k: maximum number of items of a result.
    """

    def __init__(self, host: Host, k: int) -> None:
        self._host, self._k = host, k

    def endpoints(self) -> list[Endpoint]:
        """Return /v1/search and /v1/version."""
        return [
            Endpoint(
                method="POST",
                path="/v1/search",
                handler=self.search,
                summary="Items nearest to user embeddings, from exactly one version of the index",
                errors=(400, 409, 413, 503),
            ),
            Endpoint(method="GET", path="/v1/version", handler=self.version, summary="Model -> versions on this host"),
        ]

    async def search(self, request: SearchRequest) -> SearchResponse:
        """Search the index of the requested version."""
        if request.k > self._k:
            raise bad_request(f"k: found {request.k}, expected at most {self._k}", "k")
        return await self._host.answer(request)

    async def version(self) -> Versions:
        """Return the versions of this host."""
        return self._host.version()


class AdminRoutes:
    """Admin calls that change which versions a host loads and serves.

    Args:
        host: the host of the process.
        towers: user towers of the gateway in the same process; it loads the tower of a version before the version is
            served. None if there is no gateway.
    """

    def __init__(self, host: Host, towers: TowerCache | None) -> None:
        self._host, self._towers = host, towers

    def endpoints(self) -> list[Endpoint]:
        """Return /v1/admin/load, serve and unload."""
        rows = {
            "load": (self.load, "Load a version or alias"),
            "serve": (self.serve, "Serve a loaded version"),
            "unload": (self.unload, "Unload a version that is not served"),
        }
        return [admin_endpoint(name, handler, summary=summary) for name, (handler, summary) in rows.items()]

    async def load(self, request: VersionRequest) -> Versions:
        """Load a version or alias; index and tower are self-checked before this returns."""
        version = await asyncio.to_thread(self._host.load, request.version)
        if self._towers is not None:
            await self._towers.get(version)
        return self._host.version()

    async def serve(self, request: VersionRequest) -> Versions:
        """Serve a loaded version."""
        self._host.require(request.version, request.model)
        if self._towers is not None:
            await self._towers.get(request.version)
        self._host.serve(request.version, request.model)
        return self._host.version()

    async def unload(self, request: VersionRequest) -> Versions:
        """Unload a version that is not served."""
        self._host.unload(request.version, request.model)
        return self._host.version()


def admin_endpoint(
    name: str, handler: Callable[..., Awaitable[object]], *, summary: str, errors: Sequence[int] = ()
) -> Endpoint:
    """Return the row of an admin call.

    Args:
        name: last part of the path.
        handler: coroutine function of the request.
        summary: summary in the OpenAPI document.
        errors: HTTP statuses besides those of every admin call.
    """
    return Endpoint(
        method="POST",
        path=f"/v1/admin/{name}",
        handler=handler,
        summary=summary,
        errors=(*ADMIN_ERRORS, *errors),
        is_admin=True,
    )


def _in_list(problem: Problem, number: int) -> Problem:
    field = f"[{number}]" + (f".{problem.field}" if problem.field else "")
    return Problem(problem.status, problem.code, message=f"[{number}]: {problem.message}", field=field)
