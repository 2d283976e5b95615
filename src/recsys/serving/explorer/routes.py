"""The addresses of the page: its files, and what it looks up. They read, and change nothing. Imports no torch."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from recsys.serving.events import Event, EventStore, StoreError
from recsys.serving.explorer.catalogue import Catalogue
from recsys.serving.explorer.messages import (
    ExplainRequest,
    ExplainResponse,
    FindRequest,
    FindResponse,
    ItemsQuery,
    ItemsResponse,
    LookedAtEvent,
    UsersQuery,
    UsersResponse,
)
from recsys.serving.explorer.page import StaticFile, static_files
from recsys.serving.gateway.router import Router
from recsys.serving.host.releases import Releases
from recsys.serving.http.app import Reply, Request, Routes, json_reply
from recsys.serving.http.messages import Decoder
from recsys.serving.http.openapi import openapi
from recsys.serving.http.problems import bad_request, too_large, unavailable

Q = TypeVar("Q", bound=msgspec.Struct)
T = TypeVar("T")

_find = Decoder(FindRequest)
_explain = Decoder(ExplainRequest)


class Catalogues:
    """The catalogues of the versions that were looked at last; of one event loop.

    Args:
        releases: where they are opened.
        size: kept.
    """

    def __init__(self, releases: Releases, size: int) -> None:
        self._releases, self._size = releases, size
        self._held: OrderedDict[str, asyncio.Task[Catalogue]] = OrderedDict()

    async def get(self, version: str) -> Catalogue:
        """That of a version; opened once, however many ask.

        Raises:
            UserError: there is no such release, or it is not what it says.
        """
        if version not in self._held:
            self._held[version] = asyncio.create_task(asyncio.to_thread(self._open, version))
        self._held.move_to_end(version)
        while len(self._held) > self._size:
            self._held.popitem(last=False)
        task = self._held[version]
        try:
            return await asyncio.shield(task)
        except Exception:
            # Tried again with the next request.
            if self._held.get(version) is task:
                del self._held[version]
            raise

    def _open(self, version: str) -> Catalogue:
        folder, _ = self._releases.open(version)
        return Catalogue.open(folder, self._releases.known_items(version))


class LookingRoutes:
    """What a gateway answers to people who look.

    Args:
        router: says which version is served, and which ones are held.
        catalogues: of the items.
        events: histories of known users.
        max_history: events of a request, at most.
    """

    def __init__(self, router: Router, catalogues: Catalogues, events: EventStore, max_history: int) -> None:
        self._router, self._catalogues, self._events, self._max_history = router, catalogues, events, max_history

    def routes(self) -> Routes:
        """/v1/items, /v1/items/find, /v1/explain and /v1/users."""
        return {
            "/v1/items": {"GET": self._items},
            "/v1/items/find": {"POST": self._find},
            "/v1/explain": {"POST": self._explain},
            "/v1/users": {"GET": self._users},
        }

    async def _items(self, request: Request) -> Reply:
        asked = read_query(request.query, ItemsQuery)
        version, catalogue = await self._catalogue(asked.version)
        return json_reply(ItemsResponse(version, await asyncio.to_thread(catalogue.search, asked.q, asked.limit)))

    async def _find(self, request: Request) -> Reply:
        asked: FindRequest = _find(request.body)
        version, catalogue = await self._catalogue(asked.version)
        found = await asyncio.to_thread(lambda: [catalogue.find(name) for name in asked.names])
        return json_reply(FindResponse(version, found))

    async def _explain(self, request: Request) -> Reply:
        asked: ExplainRequest = _explain(request.body)
        if asked.history is not None and len(asked.history) > self._max_history:
            found = len(asked.history)
            raise too_large(f"history: found {found} entries, expected at most {self._max_history}", "history")
        version, catalogue = await self._catalogue(asked.version)
        events: Sequence[LookedAtEvent | Event] = asked.history or []
        if asked.history is None and asked.user_id is not None:
            events = await self._read(self._events.history, asked.user_id)
        item_ids = [event.item_id for event in events]

        def explain() -> ExplainResponse:
            past = catalogue.past(item_ids, [event.timestamp for event in events])
            return ExplainResponse(version, past, catalogue.explain(item_ids, asked.item_ids, asked.num_reasons))

        return json_reply(await asyncio.to_thread(explain))

    async def _users(self, request: Request) -> Reply:
        asked = read_query(request.query, UsersQuery)
        return json_reply(UsersResponse(await self._read(self._events.users, asked.prefix, asked.limit)))

    async def _catalogue(self, wanted: str | None) -> tuple[str, Catalogue]:
        # Those that no host holds are not opened: anybody could have them read.
        version = self._router.assign(None, wanted).version
        return version, await self._catalogues.get(version)

    async def _read(self, read: Callable[..., T], *given: Any) -> T:
        try:
            return await asyncio.to_thread(read, *given)
        except StoreError as error:
            raise unavailable(str(error)) from error


def page_routes() -> Routes:
    """The page at /, and the files that it loads."""
    return {path: {"GET": _Static(file)} for path, file in static_files().items()}


class _Static:
    """Answers with a file, or with 304 where the caller has it."""

    def __init__(self, file: StaticFile) -> None:
        headers = tuple((name.encode(), value.encode()) for name, value in file.headers.items())
        self._etag = file.headers["etag"].encode()
        kind = file.headers["content-type"].encode()
        kept = tuple((name, value) for name, value in headers if name not in (b"content-type", b"content-length"))
        self._whole = Reply(file.content, 200, kind, kept)
        self._same = Reply(b"", 304, kind, kept)

    async def __call__(self, request: Request) -> Reply:
        return self._same if request.header(b"if-none-match") == self._etag else self._whole


def read_query(query: bytes, kind: type[Q]) -> Q:
    """Parameters of an address.

    Raises:
        Problem: 400, with the parameter that is wrong.
    """
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=32)
    except ValueError as error:
        raise bad_request(f"query: found {query[:80]!r}, expected parameters as UTF-8 ({error})") from error
    given = dict(pairs)
    if len(given) < len(pairs):
        raise bad_request("query: a parameter is there twice")
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$.")
        field = place.rstrip("`") or None
        raise bad_request(f"{field}: {message}" if field else message, field) from error


def schema_routes(served: Routes) -> Routes:
    """/schema of a server with these routes, itself included."""
    addresses = {(method, path) for path, methods in served.items() for method in methods}
    reply = json_reply(openapi({*addresses, ("GET", "/schema")}))

    async def schema(request: Request) -> Reply:  # noqa: ARG001
        return reply

    return {"/schema": {"GET": schema}}
