"""Admin calls of a gateway: what a rollout asks of it. Imports no torch."""

from __future__ import annotations

from recsys.serving.gateway.router import Canary, Router
from recsys.serving.gateway.tower_cache import TowerCache
from recsys.serving.http.app import Reply, Request, Routes, json_reply
from recsys.serving.http.messages import CanaryRequest, Decoder, GatewayState, VersionRequest
from recsys.serving.http.routes import guarded

_version = Decoder(VersionRequest)
_canary = Decoder(CanaryRequest)


class GatewayAdmin:
    """What changes a gateway; needs a token.

    Args:
        router: gets the canary. It is forgotten when the process ends: then users get what the hosts serve.
        towers: of users, by version.
        token: that calls must bear; None: there are no such calls.
    """

    def __init__(self, router: Router, towers: TowerCache, token: str | None) -> None:
        self._router, self._towers, self._token = router, towers, token

    def routes(self) -> Routes:
        """/v1/admin/tower and canary."""
        handlers = {"tower": self._tower, "canary": self._canary}
        return {f"/v1/admin/{name}": {"POST": guarded(handler, self._token)} for name, handler in handlers.items()}

    async def _tower(self, request: Request) -> Reply:
        asked: VersionRequest = _version(request.body)
        self._towers.require(asked.version)
        await self._towers.get(asked.version)
        return self._state()

    async def _canary(self, request: Request) -> Reply:
        asked: CanaryRequest = _canary(request.body)
        if asked.share:
            self._towers.require(asked.version)
            # Before the first of its users comes.
            await self._towers.get(asked.version)
        self._router.canary = Canary(asked.version, asked.share) if asked.share else None
        return self._state()

    def _state(self) -> Reply:
        canary = self._router.canary
        given = None if canary is None else CanaryRequest(canary.version, canary.share)
        return json_reply(GatewayState(self._towers.versions, given))
