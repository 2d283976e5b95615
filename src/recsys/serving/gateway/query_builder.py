"""Queries of requests: the fields of a request, completed by the stored history and profile of its user.

Imports no torch.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from recsys.release.runtime.query_encoder import Query, QueryEncoder
from recsys.serving.events import Event, EventStore, StoreError
from recsys.serving.http.messages import RetrieveRequest
from recsys.serving.http.problems import unavailable
from recsys.serving.observability.metrics import Metrics


class QueryBuilder:
    """Builds the queries of a microbatch with one read of the event store."""

    def __init__(self, events: EventStore, metrics: Metrics) -> None:
        self._events, self._metrics = events, metrics

    async def build(self, tower: QueryEncoder, requests: Sequence[RetrieveRequest]) -> list[Query]:
        """Return the query of each request; stored features that the tower does not know are left out."""
        stored = [r.user_id for r in requests if r.history is None and r.user_id is not None]
        profiled = [r.user_id for r in requests if r.user_id is not None] if tower.reads_profiles else []
        histories: dict[int | str, list[Mapping[str, Any]]] = {}
        profiles: dict[int | str, Mapping[str, Any]] = {}
        if stored or profiled:
            with self._metrics.timed("events"):
                if self._events.is_embedded:
                    stored_events, profiles = self._read(stored, profiled)
                else:
                    stored_events, profiles = await asyncio.to_thread(self._read, stored, profiled)
            known = tower.names["history"]
            histories = {user: _as_history(events, known) for user, events in stored_events.items()}
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

    def readable(
        self, tower: QueryEncoder, requests: Sequence[RetrieveRequest], *, queries: Sequence[Query]
    ) -> list[Query]:
        """Return queries without the stored values that the tower cannot read; they are counted."""
        found, unreadable = [], 0
        for request, query in zip(requests, queries, strict=True):
            if request.user_id is not None:
                history, posted, lost = query.history, request.user or {}, 0
                if request.history is None:
                    history, lost = tower.readable_events(history)
                stored = {name: value for name, value in query.user.items() if name not in posted}
                profile, lost_features = tower.readable_profile(stored)
                query = dataclasses.replace(query, history=history, user={**profile, **posted})
                unreadable += lost + lost_features
            found.append(query)
        self._metrics.unreadable.inc(unreadable)
        return found

    def _read(
        self, stored: Sequence[int | str], profiled: Sequence[int | str]
    ) -> tuple[dict[int | str, list[Event]], dict[int | str, Mapping[str, Any]]]:
        try:
            histories = dict(zip(stored, self._events.histories(stored), strict=True))
            return histories, {user: self._events.profile(user) for user in profiled}
        except StoreError as error:
            raise unavailable(str(error)) from error


def _as_history(events: Sequence[Event], known: set[str]) -> list[Mapping[str, Any]]:
    """Leave out stored features that the release does not know; another release may have stored them."""
    return [
        {**{name: value for name, value in features.items() if name in known}, "item_id": item, "timestamp": seconds}
        if features
        else {"item_id": item, "timestamp": seconds}
        for item, seconds, features in events
    ]
