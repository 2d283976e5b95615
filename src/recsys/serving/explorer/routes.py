"""Rows of the route table that the page calls. They read and change nothing. Imports no torch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from recsys.serving.async_lru import AsyncLRU
from recsys.serving.events import Event, EventStore, StoreError
from recsys.serving.explorer.item_explorer import ItemExplorer
from recsys.serving.explorer.messages import (
    ExplainRequest,
    ExplainResponse,
    FindRequest,
    FindResponse,
    ItemsQuery,
    ItemsResponse,
    PastEvent,
    UsersQuery,
    UsersResponse,
)
from recsys.serving.gateway.router import Router
from recsys.serving.host.releases import ReleaseCache
from recsys.serving.http.endpoint import route
from recsys.serving.http.problems import too_large, unavailable
from recsys.serving.pools import CATALOGUE, USERS

T = TypeVar("T")
# Seconds that a call of the page waits for the event store.
_STORE_SECONDS = 5.0
# Titles that one call may compare with a word: some seconds of a thread.
MOST_READS = 250_000_000


class ExplorerRoutes:
    """Items by name, explanations of recommendations, and users by prefix; `size` releases are kept in memory."""

    def __init__(
        self, router: Router, releases: ReleaseCache, *, size: int, events: EventStore, max_history: int
    ) -> None:
        self._router, self._releases, self._events, self._max_history = router, releases, events, max_history
        self._explorers = AsyncLRU(self._open, size)

    @route("GET", "/v1/items", errors=(400, 409, 413, 503))
    async def items(self, query: ItemsQuery) -> ItemsResponse:
        """Find items by the beginning of an id, or words of a title."""
        version, explorer = await self._explorer(query.version)
        _check_words([query.q], explorer, field="q")
        return ItemsResponse(version, await CATALOGUE.run(explorer.search, query.q, query.limit))

    @route("POST", "/v1/items/find", errors=(400, 409, 413, 503))
    async def find(self, request: FindRequest) -> FindResponse:
        """Find the item that best matches each pasted name: an id or a title."""
        version, explorer = await self._explorer(request.version)
        _check_words(request.names, explorer, field="names")
        found = await CATALOGUE.run(lambda: [explorer.find(name) for name in request.names])
        return FindResponse(version, found)

    @route("POST", "/v1/explain", errors=(400, 409, 413, 503))
    async def explain(self, request: ExplainRequest) -> ExplainResponse:
        """Return recommended items with the most similar items of the history, given or stored."""
        if request.history is not None and len(request.history) > self._max_history:
            found = len(request.history)
            raise too_large(f"history: found {found} entries, expected at most {self._max_history}", "history")
        version, explorer = await self._explorer(request.version)
        events: Sequence[PastEvent | Event] = request.history or []
        if request.history is None and request.user_id is not None:
            events = await self._read(self._events.history, request.user_id)
        item_ids = [event.item_id for event in events]

        def explain() -> ExplainResponse:
            past = explorer.past(item_ids, [event.timestamp for event in events])
            explained = explorer.explain(item_ids, request.item_ids, num_reasons=request.num_reasons)
            return ExplainResponse(version, past, explained, explorer.similarity)

        return await CATALOGUE.run(explain)

    @route("GET", "/v1/users", errors=(400, 503))
    async def users(self, query: UsersQuery) -> UsersResponse:
        """Find users with stored events by the beginning of their id."""
        return UsersResponse(await self._read(self._events.users, query.prefix, query.limit))

    async def _explorer(self, wanted: str | None) -> tuple[str, ItemExplorer]:
        # Only versions that a host holds are opened; otherwise any caller could make the server load any release.
        version = self._router.assign(None, wanted).version
        return version, await self._explorers.get(version)

    def _open(self, version: str) -> ItemExplorer:
        folder, _ = self._releases.open(version)
        return ItemExplorer.open(folder, self._releases.known_items(version))

    async def _read(self, read: Callable[..., T], *given: Any) -> T:
        try:
            async with asyncio.timeout(_STORE_SECONDS):
                return await USERS.run(read, *given)
        except StoreError as error:
            raise unavailable(str(error)) from error
        except TimeoutError as error:
            raise unavailable("events: no answer in time") from error


def _check_words(names: Sequence[str], explorer: ItemExplorer, *, field: str) -> None:
    words, most = sum(len(set(name.split())) for name in names), MOST_READS // max(1, explorer.num_items)
    if words > most:
        message = f"{field}: found {words} words, expected at most {most} for {explorer.num_items} items"
        raise too_large(message, field)
