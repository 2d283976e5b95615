"""Rows of the route table for gateways, hosts and the process itself. Imports no torch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from recsys.core.errors import UserError
from recsys.serving.events import Outcome, StoreError, parse_events
from recsys.serving.gateway.gateway import MAX_MICROBATCH, Gateway
from recsys.serving.gateway.similar import SimilarItems
from recsys.serving.host.host import Host
from recsys.serving.http.admission import is_late, overloaded
from recsys.serving.http.endpoint import route
from recsys.serving.http.messages import (
    EventsResponse,
    Hosts,
    PostedEvents,
    RetrieveRequest,
    RetrieveResponse,
    SearchRequest,
    SearchResponse,
    SimilarRequest,
    SimilarResponse,
    Status,
    Versions,
)
from recsys.serving.http.problems import Problem, bad_request, from_user_error, too_large, unavailable
from recsys.serving.observability.metrics import CONTENT_TYPE, Metrics
from recsys.serving.pools import EVENTS
from recsys.serving.quotas import cost_of


class ProcessRoutes:
    """Health, metrics and OpenAPI document of the process.

    Attributes:
        is_draining: true on shutdown, when the server still answers but /readyz fails.
        document: OpenAPI document, which the builder of the application sets.
    """

    def __init__(self, ready: Callable[[], Awaitable[None]], metrics: Metrics) -> None:
        self._ready, self._metrics = ready, metrics
        self.is_draining = False
        self.document: dict[str, Any] = {}

    @route("GET", "/healthz")
    async def healthz(self) -> Status:
        """Return ok while the process is up."""
        return Status("ok")

    @route("GET", "/readyz", errors=(503,))
    async def readyz(self) -> Status:
        """Return ready if the server can answer requests."""
        problem = await self.not_ready()
        if problem is not None:
            raise problem
        return Status("ready")

    async def not_ready(self) -> Problem | None:
        """Return why the server cannot answer requests, or None."""
        if self.is_draining:
            return unavailable("the server is about to end")
        try:
            await self._ready()
        except Problem as problem:
            return problem
        return None

    @route("GET", "/metrics", media_type=CONTENT_TYPE)
    async def metrics(self) -> bytes:
        """Return the metrics for Prometheus."""
        return self._metrics.expose()

    @route("GET", "/schema")
    async def schema(self) -> dict[str, Any]:
        """Return this document."""
        return self.document


class GatewayRoutes:
    """Retrieval and events. `clock` returns the time in seconds since 1970."""

    def __init__(self, gateway: Gateway, clock: Callable[[], float] = time.time) -> None:
        self._gateway, self._clock = gateway, clock

    @route("POST", "/v1/retrieve", errors=(400, 409, 413, 503), stage="answer")
    async def retrieve(
        self, request: RetrieveRequest | list[RetrieveRequest]
    ) -> RetrieveResponse | list[RetrieveResponse]:
        """Return ranked items for one user, or for each of several.

        One invalid request of a list refuses the list.
        """
        if isinstance(request, RetrieveRequest):
            return await self._gateway.retrieve(request)
        self._check_length(request, "requests")
        self._gateway.check_cost(request)
        answers: list[RetrieveResponse] = []
        outcomes: list[RetrieveResponse | BaseException] = []
        # Not all at once, because the requests of a long list would wait for each other.
        for begin in range(0, len(request), MAX_MICROBATCH):
            some = map(self._gateway.retrieve, request[begin : begin + MAX_MICROBATCH])
            outcomes += await asyncio.gather(*some, return_exceptions=True)
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, UserError):
                raise _in_list(from_user_error(outcome), number)
            if isinstance(outcome, BaseException):
                raise outcome
            answers.append(outcome)
        return answers

    @route("POST", "/v1/events", errors=(400, 413, 415, 503), writes=True)
    async def events(self, posted: PostedEvents) -> EventsResponse:
        """Store an event, or several; durable when acknowledged, and used by the next retrieve."""
        if isinstance(posted, list):
            self._check_length(posted, "events")
        events = parse_events(posted, await self._gateway.event_values(), now=self._clock())
        try:
            outcomes = await EVENTS.run(self._gateway.events.append, events)
        except StoreError as error:
            raise unavailable(str(error)) from error
        counts = {outcome: outcomes.count(outcome) for outcome in Outcome}
        self._gateway.metrics.stored_events.inc(len(events))
        for outcome, number in counts.items():
            self._gateway.metrics.event_outcomes[outcome].inc(number)
        return EventsResponse(counts[Outcome.STORED], counts[Outcome.REPEATED], counts[Outcome.DROPPED])

    @route("GET", "/v1/hosts")
    async def hosts(self) -> Hosts:
        """Return host -> model -> versions; null for a host that does not answer."""
        return self._gateway.router.hosts()

    def _check_length(self, posted: Sequence[object], name: str) -> None:
        limit = self._gateway.limits.batch
        if len(posted) > limit:
            raise too_large(f"found {len(posted)} {name}, expected at most {limit}")


class SimilarRoutes:
    """Items like some items, within the limits of a request."""

    def __init__(self, similar: SimilarItems, *, k: int, exclude: int) -> None:
        self._similar, self._k, self._exclude = similar, k, exclude

    @route("POST", "/v1/similar", errors=(400, 409, 413, 503))
    async def similar(self, request: SimilarRequest) -> SimilarResponse:
        """Return items like the given ones, from the same version."""
        if request.k > self._k:
            raise bad_request(f"k: found {request.k}, expected at most {self._k}", "k")
        if request.exclude is not None and len(request.exclude) > self._exclude:
            found = len(request.exclude)
            raise too_large(f"exclude: found {found} entries, expected at most {self._exclude}", "exclude")
        return await self._similar.similar(request)


class HostRoutes:
    """Search in the indexes of an ANN host, within the limits of a request.

    A microbatch of a gateway has users of many requests, each within the limits, so up to `MAX_MICROBATCH` users are
    searched whatever `batch` and `cost`.
    """

    def __init__(self, host: Host, *, k: int, batch: int, cost: int) -> None:
        self._host, self._k, self._batch, self._cost = host, k, batch, cost

    @route("POST", "/v1/search", errors=(400, 409, 413, 503))
    async def search(self, request: SearchRequest) -> SearchResponse:
        """Return the items nearest to user embeddings, from exactly one version of the index."""
        if request.k > self._k:
            raise bad_request(f"k: found {request.k}, expected at most {self._k}", "k")
        users = len(request.embeddings) if request.embeddings.ndim else 0
        if users > (most := max(self._batch, MAX_MICROBATCH)):
            raise too_large(f"embeddings: found {users} users, expected at most {most}", "embeddings")
        num_items = self._host.held(request.version, request.model).manifest.num_items
        quotas = cost_of(users, num_items) if request.quotas else 0
        if users > MAX_MICROBATCH and users * request.k + quotas > self._cost:
            found = f"{users} users x k={request.k}" + (f", and {quotas} for their quotas" if quotas else "")
            raise too_large(f"cost: found {found}, expected at most {self._cost} items")
        if is_late():
            raise overloaded("the deadline of the request has passed")
        return await self._host.answer(request)

    @route("GET", "/v1/version", errors=(503,))
    async def version(self) -> Versions:
        """Return model -> versions on this host; 503 while the host rests because of a fault of its own."""
        self._host.require_sound()
        return self._host.version()


def _in_list(problem: Problem, number: int) -> Problem:
    field = f"[{number}]" + (f".{problem.field}" if problem.field else "")
    return Problem(problem.status, problem.code, message=f"[{number}]: {problem.message}", field=field)
