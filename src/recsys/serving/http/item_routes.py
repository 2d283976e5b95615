"""The addresses by which items come and go while a host serves. Imports no torch."""

from __future__ import annotations

import asyncio

from recsys.serving.host.additions import Additions
from recsys.serving.host.host import Host
from recsys.serving.host.item_updates import ChangedItems, Changes
from recsys.serving.http.app import Reply, Request, Routes, json_reply
from recsys.serving.http.messages import ChangesResponse, Decoder, ItemsRequest, TakedownRequest
from recsys.serving.http.problems import bad_request
from recsys.serving.http.routes import guarded

_items = Decoder(ItemsRequest)
_takedown = Decoder(TakedownRequest)


class ItemRoutes:
    """What adds and takes down items; needs the token.

    Args:
        host: whose indexes are opened by `changes`.
        changes: of the host.
        token: that calls must bear; None: there are no such calls.
    """

    def __init__(self, host: Host, changes: Changes, token: str | None) -> None:
        self._host, self._changes, self._token = host, changes, token

    def routes(self) -> Routes:
        """/v1/admin/items and /v1/admin/takedown."""
        handlers = {"items": self._add, "takedown": self._take_down}
        return {f"/v1/admin/{name}": {"POST": guarded(handler, self._token)} for name, handler in handlers.items()}

    async def _add(self, request: Request) -> Reply:
        asked: ItemsRequest = _items(request.body)
        held = self._host.held(asked.version, asked.model)
        assert isinstance(held, ChangedItems), "the host's indexes are opened by `Changes.open`"
        # An empty list has one dimension.
        embeddings = asked.embeddings if asked.embeddings.size else asked.embeddings.reshape(0, held.manifest.dim)
        if embeddings.ndim != 2:
            raise bad_request(
                f"embeddings: found shape {list(embeddings.shape)}, expected two dimensions", "embeddings"
            )
        given = Additions(asked.version, asked.items, embeddings)
        # Returns when they are durable.
        return json_reply(ChangesResponse(await asyncio.to_thread(self._changes.add, given, held)))

    async def _take_down(self, request: Request) -> Reply:
        asked: TakedownRequest = _takedown(request.body)
        return json_reply(ChangesResponse(await asyncio.to_thread(self._changes.take_down, asked.item_ids)))
