"""Gateway: answers a request with a version, the user tower of that version, and the index of that version.

A user embedding never meets an index of another version. The version comes from the host that will be searched. The
search names it, a host that does not hold it refuses, and the request is assigned again. The gateway also compares the
version that the host reports with the version of the tower. Imports no torch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.release.runtime.feature_values import ValueType
from recsys.release.runtime.query_encoder import ItemId, Query, QueryEncoder
from recsys.serving.events import EventStore, StoreError
from recsys.serving.gateway.limits import Limits
from recsys.serving.gateway.microbatch import Microbatcher
from recsys.serving.gateway.query_builder import QueryBuilder
from recsys.serving.gateway.remote_host import HostBusy
from recsys.serving.gateway.router import Assignment, Router
from recsys.serving.gateway.stored_users import Stored, StoredUsers
from recsys.serving.gateway.tower_cache import TowerCache
from recsys.serving.http.admission import OVERLOADED, Admission, deadline, overloaded
from recsys.serving.http.codec import encode
from recsys.serving.http.messages import RetrieveRequest, RetrieveResponse, ScoredItem, SearchRequest
from recsys.serving.http.problems import Problem, VersionNotHeld, unavailable
from recsys.serving.impressions.recorder import ImpressionRecorder
from recsys.serving.observability.metrics import Metrics
from recsys.serving.observability.request_sampler import RequestSampler
from recsys.serving.observability.samples import RequestSample
from recsys.serving.pools import HISTORIES, SEARCH

log = logging.getLogger("recsys")

# Seconds between two attempts while no host can answer.
RETRY_EVERY = 0.05
# Maximum number of requests of a microbatch.
MAX_MICROBATCH = 64
# Size of the unknown items of a stored history in an answer, with 20 bytes for each besides its letters.
_UNKNOWN_BYTES = 16_000
# Seconds between two checks of the event store.
CHECK_STORE_EVERY = 3.0
# Events of a microbatch that are encoded in the event loop; more would keep it busy for too long.
MAX_EVENTS_IN_LOOP = 5000
_NOTHING = Stored((), {})


class _BatchKey(NamedTuple):
    """Values that all requests of one microbatch share; `filter` is the JSON of filter and quotas."""

    assignment: Assignment
    k: int
    filter: bytes | None


class _Embedded(NamedTuple):
    queries: Sequence[Query]
    embeddings: Float32Array
    exclude: list[list[ItemId]]
    lengths: list[int]
    unknown: list[list[ItemId]]


class _Asked(NamedTuple):
    """A request, and what the event store has of its user; None if it is in this process and read later."""

    request: RetrieveRequest
    stored: Stored | None


class Gateway:
    """Retrieval for users. The sampler keeps a share of the requests, and the recorder the answers."""

    def __init__(
        self,
        router: Router,
        towers: TowerCache,
        *,
        events: EventStore,
        limits: Limits,
        metrics: Metrics,
        sampler: RequestSampler | None = None,
        admission: Admission | None = None,
        impressions: ImpressionRecorder | None = None,
    ) -> None:
        self.router, self.towers, self.events, self.limits, self.metrics = router, towers, events, limits, metrics
        self._sampler, self._impressions = sampler, impressions
        self._store_fault: str | None = None
        self._query_builder = QueryBuilder(metrics)
        self._users = StoredUsers(events, metrics, seconds=limits.store_seconds)
        self._batches: Microbatcher[_BatchKey, _Asked, RetrieveResponse] = Microbatcher(
            self._answer_all, MAX_MICROBATCH, admission=admission
        )

    async def ready(self) -> None:
        """Load the tower of the version that currently answers requests, or raise `Problem` (503)."""
        if self._store_fault is not None:
            raise unavailable(self._store_fault)
        await self.towers.get(self.router.assign().version)

    async def check_store(self) -> None:
        """Check that the event store keeps what it acknowledges; the server is not ready while it does not."""
        try:
            async with asyncio.timeout(self.limits.store_seconds):
                await HISTORIES.run(self.events.check)
            self._store_fault = None
        except StoreError as error:
            if self._store_fault is None:
                log.error("the server is not ready: %s", error)
            self._store_fault = str(error)
        except TimeoutError:
            # A store that hangs is no reason to send requests elsewhere: they are answered without histories.
            log.warning("events: the store did not answer a check")

    async def keep_checking_store(self) -> None:
        """Check the event store every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_STORE_EVERY)
            with self.metrics.keep_going("store_check"):
                await self.check_store()

    async def retrieve(self, request: RetrieveRequest) -> RetrieveResponse:
        """Return ranked items.

        Raises:
            Problem: If the request is invalid (4xx), or nothing that could answer was up in time (503).
        """
        self.limits.check(request)
        wanted = encode((request.filter, request.quotas)) if request.filter or request.quotas else None
        give_up = min(time.monotonic() + self.limits.seconds, deadline.get() or float("inf"))
        stored = None
        while True:
            try:
                assignment = self.router.assign(request.user_id, request.version)
                if stored is None and not self._users.is_embedded:
                    stored = await self._stored(request, assignment.version)
                return await self._batches.submit(_BatchKey(assignment, request.k, wanted), _Asked(request, stored))
            except Problem as error:
                moved = isinstance(error, VersionNotHeld)
                if isinstance(error, HostBusy):
                    raise overloaded() from error
                if error.code == OVERLOADED:
                    # Another attempt would only add to the load.
                    raise
                if error.status != 503 and (not moved or request.version is not None):
                    raise
                if time.monotonic() > give_up:
                    raise unavailable(error.message) from error
                if moved:
                    self.metrics.fallbacks["version"].inc()
            await asyncio.sleep(0 if moved else RETRY_EVERY)

    async def event_values(self) -> Mapping[str, ValueType]:
        """Return the features that an event may have: those of the release that currently answers requests."""
        return (await self.towers.get(self.router.assign().version)).event_values

    def check_cost(self, requests: Sequence[RetrieveRequest]) -> None:
        """Refuse a list of requests that is too much work together; see `Limits.check_cost`."""
        items = max((tower.manifest.num_items for tower in self.towers.values), default=0)
        self.limits.check_cost(requests, items)

    async def _stored(self, request: RetrieveRequest, version: str) -> Stored:
        tower = self.towers.held(version)
        reads_profiles = tower is None or tower.reads_profiles
        if request.user_id is None or (request.history is not None and not reads_profiles):
            return _NOTHING
        return await self._users.of(request.user_id, profiled=reads_profiles)

    async def _embedded(self, tower: QueryEncoder, requests: Sequence[RetrieveRequest]) -> list[Stored]:
        """Return what the store in this process has of the users of a microbatch."""
        wanted = [r.user_id for r in requests if r.user_id is not None and (r.history is None or tower.reads_profiles)]
        distinct = list(dict.fromkeys(wanted))
        found = await self._users.all_of(distinct, profiled=tower.reads_profiles)
        of = dict(zip(distinct, found, strict=True))
        return [_NOTHING if r.user_id is None else of.get(r.user_id, _NOTHING) for r in requests]

    async def _answer_all(self, key: _BatchKey, requests: Sequence[_Asked]) -> Sequence[RetrieveResponse | Exception]:
        """Answer a microbatch; an invalid request does not affect the others."""
        try:
            return await self._answer(key, requests)
        except UserError as error:
            # Together they may be too large for a host, although each alone is not.
            if len(requests) == 1 or (isinstance(error, Problem) and error.status not in (400, 413)):
                return [error] * len(requests)
        answers: list[RetrieveResponse | Exception] = []
        for one in requests:
            answers.extend(await self._answer_all(key, [one]))
        return answers

    def _embed(
        self, tower: QueryEncoder, requests: Sequence[RetrieveRequest], *, stored: Sequence[Stored]
    ) -> _Embedded:
        metrics = self.metrics
        with metrics.timed("encode"):
            queries = self._query_builder.build(tower, requests, stored=stored)
            try:
                histories, unknown = tower.encode(queries)
            except Exception:
                # Another release may have stored values of other types. What is posted stays as it is.
                queries = self._query_builder.readable(tower, requests, queries=queries)
                histories, unknown = tower.encode(queries)
            exclude = [_excluded(one, query) for one, query in zip(requests, queries, strict=True)]
        with metrics.timed("tower"):
            embeddings = tower.tower(histories)
        return _Embedded(queries, embeddings, exclude, histories.lengths.tolist(), unknown)

    async def _answer(self, key: _BatchKey, asked: Sequence[_Asked]) -> list[RetrieveResponse | Exception]:
        requests = [one.request for one in asked]
        version = key.assignment.version
        tower = self.towers.held(version) or await self.towers.get(version)
        metrics = self.metrics
        metrics.batch["tower"].observe(len(requests))
        given = [one.stored for one in asked if one.stored is not None]
        stored = given if len(given) == len(asked) else await self._embedded(tower, requests)
        num_events = sum(
            len(found.history if one.history is None else one.history)
            for one, found in zip(requests, stored, strict=True)
        )
        if num_events > MAX_EVENTS_IN_LOOP:
            embedded = await SEARCH.run(self._embed, tower, requests, stored=stored)
        else:
            embedded = self._embed(tower, requests, stored=stored)
        wanted, model = requests[0].filter, self.router.model
        search = SearchRequest(
            tower.version, embedded.embeddings, key.k, wanted, embedded.exclude, model, requests[0].quotas
        )
        with metrics.timed("host"):
            response, hosts = await self.router.search(key.assignment, search)
        if not metrics.versions_met(tower.version, response.version, answers=len(requests)):
            # Final check of the answer, independent of the host.
            raise VersionNotHeld(tower.version, serving=None, loaded=[response.version])
        if hosts != tuple(state.name for state in key.assignment.hosts):
            metrics.fallbacks["host"].inc(len(requests))
        host = "+".join(hosts)
        answers = [
            RetrieveResponse(
                list(map(ScoredItem, found.item_ids, found.scores.tolist())),
                tower.version,
                tower.version,
                response.version,
                host,
                length,
                names if one.history is not None else _first(names),
                user.is_missing,
            )
            for one, found, length, names, user in zip(
                requests, response.results, embedded.lengths, embedded.unknown, stored, strict=True
            )
        ]
        if self._impressions is not None:
            model = tower.manifest.model
            for one, found, answer in zip(requests, response.results, answers, strict=True):
                answer.impression_id = self._impressions.record(
                    one.user_id, version, generator=model, item_ids=found.item_ids
                )
        if self._sampler is not None and self._sampler.share:
            for one, query, answer in zip(requests, embedded.queries, answers, strict=True):
                if self._sampler.wants():
                    self._sampler.put(_sample_of(one, query, answer))
        return [*answers]


def _sample_of(request: RetrieveRequest, query: Query, response: RetrieveResponse) -> RequestSample:
    is_stored, posted = request.user_id is not None, request.user or {}
    return RequestSample(
        at=time.time(),
        request=request,
        history=query.history if is_stored and request.history is None else None,
        profile={name: value for name, value in query.user.items() if name not in posted} if is_stored else None,
        version=response.version,
        item_ids=[item.item_id for item in response.items],
    )


def _first(names: list[ItemId]) -> list[ItemId]:
    """Return the first unknown items of a stored history: a short request may ask for many long histories."""
    left, kept = _UNKNOWN_BYTES, 0
    for name in names:
        left -= 20 + (len(name) if isinstance(name, str) else 0)
        if left < 0:
            break
        kept += 1
    return names[:kept]


def _excluded(request: RetrieveRequest, query: Query) -> list[ItemId]:
    seen = [event["item_id"] for event in query.history] if request.exclude_seen else []
    return [*query.exclude, *seen]
