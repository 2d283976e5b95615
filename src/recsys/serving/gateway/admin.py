"""Admin calls of a gateway, which a rollout makes. Imports no torch."""

from __future__ import annotations

from recsys.serving.gateway.router import Canary, Router
from recsys.serving.gateway.tower_cache import TowerCache
from recsys.serving.http.endpoint import Endpoint
from recsys.serving.http.messages import CanaryRequest, GatewayState, VersionRequest
from recsys.serving.http.routes import admin_endpoint


class GatewayAdmin:
    """Admin calls that change a gateway.

    Args:
        router: router that gets the canary. The canary ends with the process; then users get what the hosts serve.
        towers: tower cache.
    """

    def __init__(self, router: Router, towers: TowerCache) -> None:
        self._router, self._towers = router, towers

    def endpoints(self) -> list[Endpoint]:
        """Return /v1/admin/tower and /v1/admin/canary."""
        tower, canary, errors = "Load the user tower of a version", "Give a version to a share of the users", (404, 503)
        return [
            admin_endpoint("tower", self.tower, summary=tower, errors=errors),
            admin_endpoint("canary", self.canary, summary=canary, errors=errors),
        ]

    async def tower(self, request: VersionRequest) -> GatewayState:
        """Load the user tower of a version."""
        self._towers.require(request.version)
        await self._towers.get(request.version)
        return self._state()

    async def canary(self, request: CanaryRequest) -> GatewayState:
        """Set or end the canary."""
        if request.share:
            self._towers.require(request.version)
            # Loaded before the first user of the canary comes.
            await self._towers.get(request.version)
        self._router.canary = Canary(request.version, request.share) if request.share else None
        return self._state()

    def _state(self) -> GatewayState:
        canary = self._router.canary
        state = None if canary is None else CanaryRequest(canary.version, canary.share)
        return GatewayState(self._towers.versions, state)
