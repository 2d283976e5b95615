"""From settings to an application: what each role is put together from. Imports no torch."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Mapping
from pathlib import Path

from recsys.core.errors import UserError
from recsys.release.runtime.shard import Shard
from recsys.serving.events import StoreError, open_store
from recsys.serving.explorer.routes import Catalogues, LookingRoutes, page_routes, schema_routes
from recsys.serving.gateway.admin import GatewayAdmin
from recsys.serving.gateway.discovery import Discovery, Fixed, Listed
from recsys.serving.gateway.fleet import Fleet
from recsys.serving.gateway.gateway import Gateway, Limits
from recsys.serving.gateway.host_client import LocalHost
from recsys.serving.gateway.router import Router
from recsys.serving.gateway.tower_cache import TowerCache
from recsys.serving.host.alias_follower import Following
from recsys.serving.host.host import Host
from recsys.serving.host.item_updates import Changes
from recsys.serving.host.releases import Releases
from recsys.serving.http.app import App, Handler, Hook, Reply, Request
from recsys.serving.http.item_routes import ItemRoutes
from recsys.serving.http.problems import unavailable
from recsys.serving.http.routes import AdminRoutes, GatewayRoutes, Health, HostRoutes, metrics_routes
from recsys.serving.observability.metrics import Metrics
from recsys.serving.observability.recall_monitor import RecallMonitor
from recsys.serving.observability.request_sampler import Sampling
from recsys.serving.settings import Settings


def build_app(settings: Settings) -> tuple[App, Health]:
    """Everything that the role needs, loaded and checked.

    Raises:
        UserError: the release or the store of events cannot be used.
    """
    parts = _Parts(settings)
    if settings.role != "gateway":
        parts.add_host()
    if settings.role != "host":
        parts.add_gateway()
    return parts.app()


class _Parts:
    """What a role is put together from, in order."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._releases = settings, Releases(settings.store)
        self._routes: dict[str, Mapping[str, Handler]] = {}
        self._start: list[Hook] = []
        self._stop: list[Hook] = []
        self._host: Host | None = None
        self._towers: TowerCache | None = None
        self._ready: Hook | None = None
        self._metrics = Metrics()
        if settings.role != "host":
            self._towers = TowerCache(self._releases, settings.towers, max_events=settings.max_events)

    def add_host(self) -> None:
        """The index of the release, and what follows its alias."""
        settings = self._settings
        assert settings.release is not None
        # Of all addresses of a machine none is its name.
        place = socket.gethostname() if settings.host in ("0.0.0.0", "::") else settings.host
        shard = None if settings.shard is None else Shard.parse(settings.shard)
        monitor = RecallMonitor(settings.monitor, metrics=self._metrics)
        changes = Changes(Path(settings.changes), shard, monitor)
        host = self._host = Host(self._releases, f"{place}:{settings.port}", changes.open, shard)
        version = host.load(settings.release)
        host.serve(version)
        if self._towers is not None:
            self._towers.keep(self._towers.open(version))
        self._routes.update(HostRoutes(host, settings.k).routes())
        self._routes.update(AdminRoutes(host, settings.admin_token, self._towers).routes())
        self._routes.update(ItemRoutes(host, changes, settings.admin_token).routes())
        self._stop.append(functools.partial(asyncio.to_thread, monitor.close))
        if settings.release != version:
            keep, seconds = settings.towers, settings.follow_seconds
            following = Following(self._releases, settings.release, host, self._towers, keep, seconds)
            self._start.append(following.start)
            self._stop.append(following.stop)

        async def ready() -> None:
            if not host.is_ready:
                raise unavailable(f"{host.name} serves nothing yet")

        self._ready = ready

    def add_gateway(self) -> None:
        """Towers, events, and the way to hosts."""
        settings = self._settings
        assert self._towers is not None
        try:
            events = open_store(settings.events, settings.max_events)
        except StoreError as error:
            raise UserError(str(error)) from error
        if self._host is not None:
            shards: list[Discovery] = [Fixed(LocalHost(self._host))]
        else:
            shards = [Listed(places) for places in settings.shards or [settings.hosts or []]]
        fleet = Fleet(shards)
        limits = Limits(settings.k, settings.history, settings.batch, settings.body_bytes)
        router = Router(fleet, settings.model, metrics=self._metrics)
        sampling = Sampling(
            settings.samples_share, settings.samples, max_bytes=settings.samples_bytes, metrics=self._metrics
        )
        gateway = Gateway(router, self._towers, events, limits, self._metrics, sampling)
        looking = LookingRoutes(router, Catalogues(self._releases, settings.towers), events, settings.history)
        self._routes.update({**GatewayRoutes(gateway).routes(), **looking.routes(), **page_routes()})
        self._routes.update(GatewayAdmin(router, self._towers, settings.admin_token).routes())
        self._start.append(fleet.start)
        self._stop += [
            fleet.close,
            functools.partial(asyncio.to_thread, events.close),
            functools.partial(asyncio.to_thread, sampling.close),
        ]
        self._ready = gateway.ready

    def app(self) -> tuple[App, Health]:
        """All of it."""
        assert self._ready is not None
        health = Health(self._ready)
        self._routes.update({**health.routes(), **metrics_routes(self._metrics)})
        self._routes.update(schema_routes(self._routes))
        return App(self._routes, self._settings.body_bytes, [self._observe], self._start, self._stop), health

    def _observe(self, request: Request, reply: Reply, seconds: float) -> None:
        # What callers make up is no series of its own.
        route = request.path if request.path in self._routes else "other"
        self._metrics.answered(route, reply.status, seconds)
