"""Queries of requests: the fields of a request, completed by the stored history and profile of its user.

Imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from recsys.release.runtime.query_encoder import Query, QueryEncoder
from recsys.serving.events import Event
from recsys.serving.gateway.stored_users import Stored
from recsys.serving.http.messages import RetrieveRequest
from recsys.serving.observability.metrics import Metrics


class QueryBuilder:
    """Builds the queries of a microbatch."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def build(
        self, tower: QueryEncoder, requests: Sequence[RetrieveRequest], *, stored: Sequence[Stored]
    ) -> list[Query]:
        """Return the query of each request; stored features that the tower does not know are left out."""
        known = tower.names["history"]
        names = tower.names["user"]
        queries = []
        for request, found in zip(requests, stored, strict=True):
            user = request.user_id
            history: Sequence[Mapping[str, Any]] = request.history or ()
            profile: Mapping[str, Any] = {}
            if user is not None:
                history = _as_history(found.history, known) if request.history is None else request.history
                profile = {name: value for name, value in found.profile.items() if name in names}
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


def _as_history(events: Sequence[Event], known: set[str]) -> list[Mapping[str, Any]]:
    """Leave out stored features that the release does not know; another release may have stored them."""
    return [
        {**{name: value for name, value in features.items() if name in known}, "item_id": item, "timestamp": seconds}
        if features
        else {"item_id": item, "timestamp": seconds}
        for item, seconds, features in events
    ]
