"""Builds the application of each role from its settings. Imports no torch."""

from __future__ import annotations

import asyncio
import functools
import socket
from pathlib import Path

from starlette.routing import BaseRoute

from recsys.core.errors import UserError
from recsys.release.runtime.shard import Shard
from recsys.serving.events import StoreError, open_store
from recsys.serving.explorer.page_files import page_routes
from recsys.serving.explorer.routes import ExplorerCache, ExplorerRoutes
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
from recsys.serving.http.app import App, Hook
from recsys.serving.http.endpoint import Endpoint
from recsys.serving.http.item_routes import ItemRoutes
from recsys.serving.http.openapi import Schema, openapi
from recsys.serving.http.problems import unavailable
from recsys.serving.http.routes import AdminRoutes, GatewayRoutes, Health, HostRoutes, metrics_endpoint
from recsys.serving.observability.metrics import Metrics
from recsys.serving.observability.recall_monitor import RecallMonitor
from recsys.serving.observability.request_sampler import Sampling
from recsys.serving.settings import Settings


def build_app(settings: Settings) -> tuple[App, Health]:
    """Return the application with everything that the role needs, loaded and checked.

    Raises:
        UserError: If the release or the event store cannot be used.
    """
    builder = _Builder(settings)
    if settings.role != "host":
        builder.create_towers()
    if settings.role != "gateway":
        builder.add_host()
    if settings.role != "host":
        builder.add_gateway()
    return builder.app()


class _Builder:
    """Collects the route table, and what runs at start and stop. The order of the calls is the one in `build_app`."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._releases = settings, Releases(settings.store)
        self._endpoints: list[Endpoint] = []
        self._pages: list[BaseRoute] = []
        self._start: list[Hook] = []
        self._stop: list[Hook] = []
        self._host: Host | None = None
        self._towers: TowerCache | None = None
        self._ready: Hook | None = None
        self._metrics = Metrics()

    def create_towers(self) -> None:
        settings = self._settings
        self._towers = TowerCache(self._releases, settings.towers, max_events=settings.max_events)

    def add_host(self) -> None:
        """Load the index of the release, and follow its alias."""
        settings = self._settings
        assert settings.release is not None
        # A wildcard bind address cannot identify the host.
        place = socket.gethostname() if settings.host in ("0.0.0.0", "::") else settings.host
        shard = None if settings.shard is None else Shard.parse(settings.shard)
        monitor = RecallMonitor(settings.monitor, metrics=self._metrics)
        changes = Changes(Path(settings.changes), shard, monitor)
        host = self._host = Host(self._releases, f"{place}:{settings.port}", changes.open, shard)
        version = host.load(settings.release)
        host.serve(version)
        if self._towers is not None:
            self._towers.keep(self._towers.open(version))
        self._endpoints += HostRoutes(host, settings.k).endpoints()
        self._endpoints += AdminRoutes(host, self._towers).endpoints()
        self._endpoints += ItemRoutes(host, changes).endpoints()
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
        """Open the event store, and route requests to hosts."""
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
        # The router tries rows in order: the most frequent request comes first.
        self._endpoints = GatewayRoutes(gateway).endpoints() + self._endpoints
        self._endpoints += GatewayAdmin(router, self._towers).endpoints()
        if settings.has_page:
            explorers = ExplorerCache(self._releases, settings.towers)
            explorer = ExplorerRoutes(router, explorers, events=events, max_history=settings.history)
            self._endpoints += explorer.endpoints()
            self._pages += page_routes()
        self._start.append(fleet.start)
        self._stop += [
            fleet.close,
            functools.partial(asyncio.to_thread, events.close),
            functools.partial(asyncio.to_thread, sampling.close),
        ]
        self._ready = gateway.ready

    def app(self) -> tuple[App, Health]:
        """Return the application and its health."""
        assert self._ready is not None
        health = Health(self._ready)
        schema = Endpoint(method="GET", path="/schema", handler=self._schema, summary="This document")
        self._endpoints += [*health.endpoints(), metrics_endpoint(self._metrics), schema]
        self._document = openapi(self._endpoints)
        app = App(
            self._endpoints,
            body_bytes=self._settings.body_bytes,
            token=self._settings.admin_token,
            pages=self._pages,
            observe=self._metrics.answered,
            start=self._start,
            stop=self._stop,
        )
        return app, health

    async def _schema(self) -> Schema:
        return self._document
