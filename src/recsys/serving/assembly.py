"""Builds the application of each role from its settings. Imports no torch."""

from __future__ import annotations

import asyncio
import functools
import socket
from pathlib import Path

from starlette.routing import BaseRoute

from recsys.core.errors import UserError
from recsys.release.runtime.shard import CorpusShard
from recsys.serving.events import StoreError, open_store
from recsys.serving.explorer.page_files import page_routes
from recsys.serving.explorer.routes import ExplorerCache, ExplorerRoutes
from recsys.serving.gateway.admin import GatewayAdmin
from recsys.serving.gateway.discovery import AddressedHosts, Discovery, FixedHosts
from recsys.serving.gateway.fleet import Fleet
from recsys.serving.gateway.gateway import Gateway, Limits
from recsys.serving.gateway.host_client import LocalHost
from recsys.serving.gateway.router import Router
from recsys.serving.gateway.tower_cache import TowerCache
from recsys.serving.host.alias_follower import AliasFollower
from recsys.serving.host.host import Host
from recsys.serving.host.item_updates import ItemUpdates
from recsys.serving.host.releases import ReleaseCache
from recsys.serving.host.updated_index import UpdatedIndex
from recsys.serving.http.app import App, Hook
from recsys.serving.http.endpoint import Endpoint
from recsys.serving.http.item_routes import ItemRoutes
from recsys.serving.http.openapi import Schema, openapi
from recsys.serving.http.problems import unavailable
from recsys.serving.http.routes import AdminRoutes, GatewayRoutes, Health, HostRoutes, metrics_endpoint
from recsys.serving.observability.background import BackgroundThread
from recsys.serving.observability.metrics import Metrics
from recsys.serving.observability.recall_monitor import RecallMonitor
from recsys.serving.observability.request_sampler import RequestSampler
from recsys.serving.settings import Settings


def build_app(settings: Settings) -> tuple[App, Health]:
    """Return the application of a role, with its release and event store loaded and checked.

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
    """Collects the route table and the start and stop hooks. Methods must be called in the order of `build_app`."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._releases = settings, ReleaseCache(settings.store)
        self._endpoints: list[Endpoint] = []
        self._pages: list[BaseRoute] = []
        self._start: list[Hook] = []
        self._stop: list[Hook] = []
        self._host: Host | None = None
        self._towers: TowerCache | None = None
        self._ready: Hook | None = None
        self._metrics = Metrics()
        self._background = BackgroundThread(self._metrics)

    def create_towers(self) -> None:
        settings = self._settings
        self._towers = TowerCache(self._releases, settings.towers, max_events=settings.max_events)

    def add_host(self) -> None:
        """Load the index of the release, and follow its alias."""
        settings = self._settings
        assert settings.release is not None
        # A wildcard bind address cannot identify the host.
        place = socket.gethostname() if settings.host in ("0.0.0.0", "::") else settings.host
        shard = None if settings.shard is None else CorpusShard.parse(settings.shard)
        monitor = RecallMonitor(settings.monitor, self._background, metrics=self._metrics)
        updates = ItemUpdates(Path(settings.changes), shard)
        open_index = functools.partial(UpdatedIndex.open, updates=updates, monitor=monitor)
        host = self._host = Host(self._releases, f"{place}:{settings.port}", open_index=open_index, shard=shard)
        version = host.load(settings.release)
        host.serve(version)
        if self._towers is not None:
            self._towers.keep(self._towers.open(version))
        self._endpoints += HostRoutes(host, settings.k).endpoints()
        self._endpoints += AdminRoutes(host, self._towers).endpoints()
        self._endpoints += ItemRoutes(host, updates).endpoints()
        if settings.release != version:
            follower = AliasFollower(
                self._releases,
                settings.release,
                host=host,
                towers=self._towers,
                metrics=self._metrics,
                keep=settings.towers,
                seconds=settings.follow_seconds,
            )
            self._start.append(follower.start)
            self._stop.append(follower.stop)

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
            shards: list[Discovery] = [FixedHosts(LocalHost(self._host))]
        else:
            shards = [AddressedHosts(places) for places in settings.shards or [settings.hosts or []]]
        fleet = Fleet(shards, self._metrics)
        limits = Limits(k=settings.k, history=settings.history, batch=settings.batch, body_bytes=settings.body_bytes)
        router = Router(fleet, settings.model, metrics=self._metrics)
        sampler = RequestSampler(
            settings.samples_share,
            settings.samples,
            max_bytes=settings.samples_bytes,
            background=self._background,
            metrics=self._metrics,
        )
        gateway = Gateway(router, self._towers, events=events, limits=limits, metrics=self._metrics, sampler=sampler)
        self._endpoints += GatewayRoutes(gateway).endpoints()
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
        ]
        self._ready = gateway.ready

    def app(self) -> tuple[App, Health]:
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
            observe=self._metrics.count_answer,
            start=self._start,
            stop=[*self._stop, functools.partial(asyncio.to_thread, self._background.close)],
        )
        return app, health

    async def _schema(self) -> Schema:
        return self._document
