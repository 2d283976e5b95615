"""Rows of the route table that change a running host or gateway. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from recsys.core.suppression import SuppressionList, hash_of
from recsys.serving.events import EventStore, StoreError
from recsys.serving.events.incoming import check_user
from recsys.serving.forgetting import forget
from recsys.serving.gateway.router import Router
from recsys.serving.gateway.shared_canary import SharedCanary
from recsys.serving.gateway.tower_cache import TowerCache
from recsys.serving.host.additions import Additions
from recsys.serving.host.desired_state import RolloutLocks, ServedVersions
from recsys.serving.host.host import Host
from recsys.serving.host.item_updates import ItemUpdates
from recsys.serving.host.updated_index import UpdatedIndex
from recsys.serving.http.admin_messages import (
    Canary,
    ChangesResponse,
    ForgetRequest,
    ForgetResponse,
    GatewayState,
    ItemsRequest,
    RolloutLock,
    SearchedFile,
    TakedownRequest,
    VersionRequest,
)
from recsys.serving.http.endpoint import admin
from recsys.serving.http.messages import Versions
from recsys.serving.http.problems import bad_request, unavailable
from recsys.serving.impressions import ImpressionStore
from recsys.serving.pools import FILES, load

audit = logging.getLogger("recsys.audit")


class HostAdmin:
    """Admin calls that change the versions and the items of a host.

    The gateway in the same process, if there is one, loads the tower of a version before the version is served.
    """

    def __init__(
        self,
        host: Host,
        updates: ItemUpdates,
        *,
        towers: TowerCache | None,
        served: ServedVersions,
        locks: RolloutLocks,
        load_seconds: float,
    ) -> None:
        self._host, self._updates, self._towers, self._load_seconds = host, updates, towers, load_seconds
        self._served, self._locks = served, locks

    @admin("lock", 503)
    async def lock(self, request: RolloutLock) -> RolloutLock:
        """Take, renew or give back the lock of a rollout."""
        await self._of_state(self._locks.hold, request)
        return request

    @admin("load", 503)
    async def load(self, request: VersionRequest) -> Versions:
        """Load a version or alias; index and tower are self-checked before this returns."""
        await self._of_state(self._locks.require)
        try:
            version = await load(self._host.load, request.version, seconds=self._load_seconds)
        except TimeoutError as error:
            raise unavailable(f"{request.version} was not loaded within {self._load_seconds:g} s") from error
        return await self._with_tower(version)

    @admin("serve")
    async def serve(self, request: VersionRequest) -> Versions:
        """Serve a loaded version, also after a restart and on hosts that start later."""
        await self._of_state(self._locks.require)
        self._host.held(request.version, request.model)
        await self._with_tower(request.version)
        before = [held.serving for held in self._host.version().values()]
        model = self._host.serve(request.version, request.model)
        await FILES.run(self._served.serve, model, request.version)
        audit.info("served versions: from %s to %s", before, [held.serving for held in self._host.version().values()])
        return self._host.version()

    @admin("unload")
    async def unload(self, request: VersionRequest) -> Versions:
        """Unload a version that is not served."""
        await self._of_state(self._locks.require)
        self._host.unload(request.version, request.model)
        return self._host.version()

    @admin("items")
    async def add(self, request: ItemsRequest) -> ChangesResponse:
        """Add items to the index of one version; durable when acknowledged, and in the next answer."""
        held = self._host.held(request.version, request.model)
        assert isinstance(held, UpdatedIndex), "the indexes of the host are `UpdatedIndex`"
        # An empty list of embeddings is decoded as an array of one dimension.
        embeddings = request.embeddings if request.embeddings.size else request.embeddings.reshape(0, held.manifest.dim)
        if embeddings.ndim != 2:
            raise bad_request(
                f"embeddings: found shape {list(embeddings.shape)}, expected two dimensions", "embeddings"
            )
        additions = Additions(request.version, request.items, embeddings)
        return ChangesResponse(await FILES.run(self._updates.add, additions, held))

    @admin("takedown")
    async def take_down(self, request: TakedownRequest) -> ChangesResponse:
        """Never show these items again, in any version; durable when acknowledged."""
        return ChangesResponse(await FILES.run(self._updates.take_down, request.item_ids))

    async def _of_state(self, call: Callable[..., None], *args: object) -> None:
        try:
            await FILES.run(call, *args)
        except OSError as error:
            audit.error("the state of the fleet: %s", error)
            raise unavailable("the state of the fleet cannot be read or written; the log has the reason") from error

    async def _with_tower(self, version: str) -> Versions:
        if self._towers is not None:
            await self._towers.get(version)
        return self._host.version()


class GatewayAdmin:
    """Admin calls that change a gateway, and the canary of all gateways that share its file."""

    def __init__(self, router: Router, towers: TowerCache, *, canary: SharedCanary) -> None:
        self._router, self._towers, self._canary = router, towers, canary

    @admin("tower", 404, 503)
    async def tower(self, request: VersionRequest) -> GatewayState:
        """Load the user tower of a version."""
        return await self._loaded(request.version)

    @admin("canary", 404, 503)
    async def canary(self, request: Canary) -> GatewayState:
        """Give a version to a share of the users."""
        if request.share:
            # Loaded before the first user of the canary comes.
            await self._loaded(request.version)
        before = self._router.canary
        await self._canary.set(request if request.share else None)
        audit.info("canary: from %s to %s", *map(_shown, (before, self._router.canary)))
        return GatewayState(self._towers.keys, self._router.canary)

    async def _loaded(self, version: str) -> GatewayState:
        self._towers.require(version)
        await self._towers.get(version)
        return GatewayState(self._towers.keys, self._router.canary)


def _shown(canary: Canary | None) -> str:
    return "None" if canary is None else f"{canary.version} for {canary.share:g} of the users"


class PrivacyAdmin:
    """Erasure of users from the event store, the impressions and the request samples of a gateway."""

    def __init__(
        self, events: EventStore, *, samples: str, suppressed: str, impressions: ImpressionStore | None = None
    ) -> None:
        self._impressions = impressions
        self._events, self._samples, self._suppressed = events, Path(samples), SuppressionList(suppressed)

    @admin("forget", 503, is_private=True)
    async def forget(self, request: ForgetRequest) -> ForgetResponse:
        """Erase users from the event store and the request samples, keep them out from now on, and prove it."""
        users = [check_user(user, f"user_ids[{number}]") for number, user in enumerate(request.user_ids)]
        try:
            found = await load(
                lambda: forget(
                    users,
                    suppressed=self._suppressed,
                    store=self._events,
                    samples=self._samples,
                    impressions=self._impressions,
                )
            )
        except StoreError as error:
            raise unavailable(f"{error}; the users are kept out, and the call can be repeated") from error
        hashes = sorted({hash_of(user)[:12] for user in users})
        audit.info("forgot %d users (%s): %d places still name one", found.users, ", ".join(hashes[:10]), found.found)
        searched = [SearchedFile(*one) for one in found.searched]
        return ForgetResponse(found.users, found.listed, found.histories, found.profiles, found.samples, searched)
