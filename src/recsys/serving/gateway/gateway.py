"""Answers requests: which version, the user tower of that version, the index of that version. Imports no torch.

A user embedding never meets an index of another version. The version comes from the host that will be searched; the
search names it, a host without it refuses, and the request is resolved again; and what the host says of the index that
it searched is compared with what the tower says of itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from recsys.core.errors import UserError
from recsys.release.runtime.query_encoder import EVENT_KEYS, ItemId, Query, QueryEncoder
from recsys.release.runtime.timestamps import to_seconds
from recsys.serving.events import Event, EventStore, StoreError
from recsys.serving.gateway.microbatch import Batches
from recsys.serving.gateway.router import Assignment, Router
from recsys.serving.gateway.tower_cache import TowerCache
from recsys.serving.http.codec import encode
from recsys.serving.http.messages import (
    RetrieveRequest,
    RetrieveResponse,
    ScoredItem,
    SearchRequest,
)
from recsys.serving.http.problems import Problem, VersionNotHeld, bad_request, too_large, unavailable
from recsys.serving.observability.metrics import Metrics
from recsys.serving.observability.request_sampler import Sampling

# Between two attempts where nothing that could answer is up.
LOOK_EVERY = 0.05
LARGEST_BATCH = 64


@dataclass(frozen=True)
class Limits:
    """Of one request.

    Attributes:
        k: items of an answer.
        history: events, and excluded items.
        batch: requests, or events, of one POST.
        body_bytes: of one POST.
        seconds: after which a request that nobody could answer is given up.
    """

    k: int = 1000
    history: int = 10_000
    batch: int = 1000
    body_bytes: int = 1 << 20
    seconds: float = 4.0


class _Group(NamedTuple):
    """What requests of one batch have in common."""

    assignment: Assignment
    k: int
    filter: bytes | None


class Gateway:
    """Retrieval for users.

    Args:
        router: chooses hosts.
        towers: user towers by version.
        events: histories and profiles of known users.
        limits: of one request.
        metrics: of the process.
        sampling: keeps some of the requests; None: none.
    """

    def __init__(
        self,
        router: Router,
        towers: TowerCache,
        events: EventStore,
        limits: Limits,
        metrics: Metrics,
        sampling: Sampling | None = None,
    ) -> None:
        self.router, self.towers, self.events, self.limits, self.metrics = router, towers, events, limits, metrics
        self._sampling = sampling
        self._batches: Batches[_Group, RetrieveRequest, RetrieveResponse] = Batches(self._answer_all, LARGEST_BATCH)

    async def ready(self) -> None:
        """Load the tower of the version that a request would get now.

        Raises:
            Problem: nothing that could answer is up (503).
        """
        await self.towers.get(self.router.assign().version)

    async def retrieve(self, request: RetrieveRequest) -> RetrieveResponse:
        """Ranked items.

        Raises:
            Problem: the request is wrong (4xx), or nothing that could answer was up in time (503).
        """
        self._check(request)
        wanted = None if not request.filter else encode(request.filter)
        give_up = time.monotonic() + self.limits.seconds
        while True:
            try:
                assignment = self.router.assign(request.user_id, request.version)
                return await self._batches.ask(_Group(assignment, request.k, wanted), request)
            except Problem as error:
                moved = isinstance(error, VersionNotHeld)
                if error.status != 503 and (not moved or request.version is not None):
                    raise
                if time.monotonic() > give_up:
                    raise unavailable(error.message) from error
                if moved:
                    self.metrics.fallbacks["version"].inc()
            await asyncio.sleep(0 if moved else LOOK_EVERY)

    async def event_names(self) -> set[str]:
        """Features that an event may have: those of the release that a request would get now.

        Raises:
            Problem: nothing that could answer is up (503).
        """
        tower = await self.towers.get(self.router.assign().version)
        return tower.names["history"] - set(EVENT_KEYS)

    def _check(self, request: RetrieveRequest) -> None:
        limits = self.limits
        if request.k > limits.k:
            raise bad_request(f"k: found {request.k}, expected at most {limits.k}", "k")
        for name, given in (("history", request.history), ("exclude", request.exclude)):
            if given is not None and len(given) > limits.history:
                raise too_large(f"{name}: found {len(given)} entries, expected at most {limits.history}", name)
        for number, event in enumerate(request.history or ()):
            item = event.get("item_id")
            if type(item) is not str and (type(item) is not int or not -(2**63) <= item < 2**63):
                place = f"history[{number}].item_id"
                raise bad_request(f"{place}: found {item!r}, expected an integer of 64 bits or a string", place)
            if event.get("timestamp") is not None:
                place = f"history[{number}].timestamp"
                try:
                    to_seconds(event["timestamp"], place)
                except UserError as error:
                    raise bad_request(str(error), place) from error

    async def _answer_all(
        self, group: _Group, asked: Sequence[RetrieveRequest]
    ) -> Sequence[RetrieveResponse | Exception]:
        """Answers of one batch; a request that is wrong spoils nothing for the others."""
        try:
            return await self._answer(group, asked)
        except UserError as error:
            # Together they may be too large for a host, alone none of them is.
            if len(asked) == 1 or (isinstance(error, Problem) and error.status not in (400, 413)):
                return [error] * len(asked)
        answers: list[RetrieveResponse | Exception] = []
        for one in asked:
            answers.extend(await self._answer_all(group, [one]))
        return answers

    async def _answer(self, group: _Group, asked: Sequence[RetrieveRequest]) -> list[RetrieveResponse | Exception]:
        version = group.assignment.version
        tower = self.towers.held(version) or await self.towers.get(version)
        metrics = self.metrics
        metrics.batch["tower"].observe(len(asked))
        queries = await self._queries(tower, asked)
        with metrics.timed("encode"):
            histories, unknown = tower.encode(queries)
            exclude = [_excluded(one, query) for one, query in zip(asked, queries, strict=True)]
        with metrics.timed("tower"):
            embeddings = tower.tower(histories)
        wanted, model = asked[0].filter, self.router.model
        search = SearchRequest(tower.version, embeddings, group.k, wanted, exclude, model)
        with metrics.timed("host"):
            response, hosts = await self.router.search(group.assignment, search)
        if not metrics.versions_met(tower.version, response.version, len(asked)):
            # Whatever a host may do: an answer of two versions is none.
            raise VersionNotHeld(tower.version, serving=None, loaded=[response.version])
        if hosts != tuple(state.name for state in group.assignment.hosts):
            metrics.fallbacks["host"].inc(len(asked))
        host, lengths = "+".join(hosts), histories.lengths.tolist()
        answers = [
            RetrieveResponse(
                list(map(ScoredItem, found.item_ids, found.scores.tolist())),
                tower.version,
                tower.version,
                response.version,
                host,
                length,
                names,
            )
            for found, length, names in zip(response.results, lengths, unknown, strict=True)
        ]
        if self._sampling is not None and self._sampling.share:
            for one, query, answer in zip(asked, queries, answers, strict=True):
                if self._sampling.wants():
                    self._keep(self._sampling, one, query, answer)
        return [*answers]

    def _keep(self, sampling: Sampling, asked: RetrieveRequest, query: Query, answer: RetrieveResponse) -> None:
        is_stored = asked.user_id is not None
        given = asked.user or {}
        profile = {name: value for name, value in query.user.items() if name not in given} if is_stored else None
        sampling.put(asked, query.history if is_stored and asked.history is None else None, profile, answer)

    async def _queries(self, tower: QueryEncoder, requests: Sequence[RetrieveRequest]) -> list[Query]:
        stored = [r.user_id for r in requests if r.history is None and r.user_id is not None]
        profiled = [r.user_id for r in requests if r.user_id is not None] if tower.reads_profiles else []
        histories: dict[int | str, list[Mapping[str, Any]]] = {}
        profiles: dict[int | str, Mapping[str, Any]] = {}
        if stored or profiled:
            with self.metrics.timed("events"):
                if self.events.is_embedded:
                    found, profiles = self._read(stored, profiled)
                else:
                    found, profiles = await asyncio.to_thread(self._read, stored, profiled)
            known = tower.names["history"]
            histories = {user: _as_history(events, known) for user, events in found.items()}
        names = tower.names["user"]
        queries = []
        for request in requests:
            user = request.user_id
            history: Sequence[Mapping[str, Any]] = request.history or ()
            profile: Mapping[str, Any] = {}
            if user is not None:
                history = histories.get(user, []) if request.history is None else request.history
                profile = {name: value for name, value in profiles.get(user, {}).items() if name in names}
            queries.append(
                Query(history, user, {**profile, **(request.user or {})}, request.request or {}, request.exclude or ())
            )
        return queries

    def _read(
        self, stored: Sequence[int | str], profiled: Sequence[int | str]
    ) -> tuple[dict[int | str, list[Event]], dict[int | str, Mapping[str, Any]]]:
        try:
            histories = dict(zip(stored, self.events.histories(stored), strict=True))
            return histories, {user: self.events.profile(user) for user in profiled}
        except StoreError as error:
            raise unavailable(str(error)) from error


def _as_history(events: Sequence[Event], known: set[str]) -> list[Mapping[str, Any]]:
    """What was stored under one release may have features that another does not know."""
    return [
        {"item_id": item, "timestamp": seconds, **{name: value for name, value in features.items() if name in known}}
        if features
        else {"item_id": item, "timestamp": seconds}
        for item, seconds, features in events
    ]


def _excluded(request: RetrieveRequest, query: Query) -> list[ItemId]:
    seen = [event["item_id"] for event in query.history] if request.exclude_seen else []
    return [*query.exclude, *seen]
