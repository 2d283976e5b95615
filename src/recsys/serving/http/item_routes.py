"""Rows of the route table that add and take down items while a host serves. Imports no torch."""

from __future__ import annotations

import asyncio

from recsys.serving.host.additions import Additions
from recsys.serving.host.host import Host
from recsys.serving.host.item_updates import ItemUpdates
from recsys.serving.host.updated_index import UpdatedIndex
from recsys.serving.http.endpoint import Endpoint
from recsys.serving.http.messages import ChangesResponse, ItemsRequest, TakedownRequest
from recsys.serving.http.problems import bad_request
from recsys.serving.http.routes import admin_endpoint


class ItemRoutes:
    """Admin calls that change the items of a host.

    Args:
        host: host whose indexes were opened by `changes`.
        changes: journal of new items and takedowns.
    """

    def __init__(self, host: Host, changes: ItemUpdates) -> None:
        self._host, self._changes = host, changes

    def endpoints(self) -> list[Endpoint]:
        """Return /v1/admin/items and /v1/admin/takedown."""
        add = "Add items to the index of one version; durable when acknowledged, and in the next answer"
        take_down = "Never show these items again, in any version; durable when acknowledged"
        return [
            admin_endpoint("items", self.add, summary=add),
            admin_endpoint("takedown", self.take_down, summary=take_down),
        ]

    async def add(self, request: ItemsRequest) -> ChangesResponse:
        """Add items; returns when they are durable."""
        held = self._host.held(request.version, request.model)
        assert isinstance(held, UpdatedIndex), "the host's indexes are opened by `UpdatedIndex.open`"
        # An empty list of embeddings is decoded as an array of one dimension.
        embeddings = request.embeddings if request.embeddings.size else request.embeddings.reshape(0, held.manifest.dim)
        if embeddings.ndim != 2:
            raise bad_request(
                f"embeddings: found shape {list(embeddings.shape)}, expected two dimensions", "embeddings"
            )
        additions = Additions(request.version, request.items, embeddings)
        return ChangesResponse(await asyncio.to_thread(self._changes.add, additions, held))

    async def take_down(self, request: TakedownRequest) -> ChangesResponse:
        """Take items down; returns when that is durable."""
        return ChangesResponse(await asyncio.to_thread(self._changes.take_down, request.item_ids))
