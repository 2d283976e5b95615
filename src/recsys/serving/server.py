"""From settings to a running server. Imports no torch."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

import uvicorn

from recsys.errors import UserError
from recsys.serving.discovery import Discovery, Fixed, Listed
from recsys.serving.events import StoreError, open_store
from recsys.serving.fleet import Fleet
from recsys.serving.following import Following
from recsys.serving.gateway import Gateway, Limits
from recsys.serving.gateway_admin import GatewayAdmin
from recsys.serving.host import Host
from recsys.serving.hosts import LocalHost
from recsys.serving.http import App, Handler, Hook
from recsys.serving.looking_routes import Catalogues, LookingRoutes, page_routes, schema_routes
from recsys.serving.problems import unavailable
from recsys.serving.releases import Releases
from recsys.serving.routes import AdminRoutes, GatewayRoutes, Health, HostRoutes
from recsys.serving.routing import Router
from recsys.serving.sharding import Shard
from recsys.serving.towers import TowerCache
from recsys.serving.workers import CANNOT_START, bind, supervise

log = logging.getLogger("recsys")

ROLES = ("all", "host", "gateway")
# After SIGTERM, requests under way have so many seconds.
PATIENCE_SECONDS = 30


@dataclass(frozen=True)
class Settings:
    """Of one server; see `conf/serve.yaml`."""

    role: str
    release: str | None
    store: str
    model: str | None
    host: str
    port: int
    workers: int
    drain_seconds: float
    towers: int
    follow_seconds: float
    hosts: Sequence[str] | None
    shards: Sequence[Sequence[str]] | None
    shard: str | None
    events: str
    max_events: int
    admin_token: str | None
    k: int
    history: int
    batch: int
    body_bytes: int
    log_level: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UserError(f"role: found {self.role}, expected one of {', '.join(ROLES)}")
        for name in ("workers", "towers", "k", "history", "batch", "body_bytes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if self.workers > 1 and self.admin_token is not None:
            # A call reaches one of them, and the others would serve something else.
            instead = "start gateways on ports of their own" if self.role == "gateway" else "they follow release=ALIAS"
            raise UserError(f"workers: with several, admin calls are not possible; {instead}")
        if self.role == "gateway":
            if (self.hosts is None) == (self.shards is None):
                raise UserError("role=gateway: expected one of hosts=[http://HOST:PORT, dns:NAME:PORT] and shards=")
        elif self.hosts is not None or self.shards is not None:
            raise UserError(f"role={self.role}: hosts and shards are of role=gateway; this one searches itself")
        elif self.release is None:
            raise UserError(f"role={self.role}: expected release=VERSION|ALIAS")
        if self.shard is not None and self.role != "host":
            raise UserError(f"shard: found {self.shard}, expected null: only role=host has a part of the corpus")


class Server(uvicorn.Server):
    """Says that it is about to end before it accepts no more; then answers what it accepted.

    Args:
        config: of uvicorn.
        health: what says so.
        drain_seconds: between the two.
    """

    def __init__(self, config: uvicorn.Config, health: Health, drain_seconds: float) -> None:
        super().__init__(config)
        self._health, self._drain_seconds = health, drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM and SIGINT; a second one does not wait."""
        if self._health.is_draining or not self._drain_seconds:
            self._health.is_draining = True
            super().handle_exit(sig, frame)
            return
        self._health.is_draining = True
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(loop.call_later, self._drain_seconds, super().handle_exit, sig, frame)


def run(settings: Settings) -> None:
    """Serve until told to end.

    Raises:
        UserError: the release, the store of events or the address cannot be used.
    """
    if settings.workers == 1:
        _serve(settings)
        return
    # What is wrong is said once, before there are processes.
    if settings.release is not None and settings.role != "gateway":
        Releases(settings.store).open(settings.release)
    with bind(settings.host, settings.port, shared=True):
        supervise(functools.partial(_work, settings), settings.workers)


def _work(settings: Settings) -> None:
    logging.basicConfig(level=logging.WARNING)
    try:
        _serve(settings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(CANNOT_START)


def _serve(settings: Settings) -> None:
    _logging(settings.log_level)
    app, health = build_app(settings)
    config = uvicorn.Config(
        app,
        interface="asgi3",
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        log_level="warning",
        timeout_graceful_shutdown=PATIENCE_SECONDS,
    )
    # What is loaded stays; what requests make dies with them. Collections that look through all of it find nothing.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    listening = bind(settings.host, settings.port, shared=settings.workers > 1)
    log.info("serving at http://%s:%d", settings.host, settings.port)
    Server(config, health, settings.drain_seconds).run([listening])


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
        if settings.role != "host":
            self._towers = TowerCache(self._releases, settings.towers)

    def add_host(self) -> None:
        """The index of the release, and what follows its alias."""
        settings = self._settings
        assert settings.release is not None
        # Of all addresses of a machine none is its name.
        place = socket.gethostname() if settings.host in ("0.0.0.0", "::") else settings.host
        shard = None if settings.shard is None else Shard.parse(settings.shard)
        open_index = functools.partial(ItemSearch, shard=shard)
        host = self._host = Host(self._releases, f"{place}:{settings.port}", open_index, shard)
        version = host.load(settings.release)
        host.serve(version)
        if self._towers is not None:
            self._towers.keep(self._towers.open(version))
        self._routes.update(HostRoutes(host, settings.k).routes())
        self._routes.update(AdminRoutes(host, settings.admin_token, self._towers).routes())
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
        router = Router(fleet, settings.model)
        gateway = Gateway(router, self._towers, events, limits)
        looking = LookingRoutes(router, Catalogues(self._releases, settings.towers), events, settings.history)
        self._routes.update({**GatewayRoutes(gateway).routes(), **looking.routes(), **page_routes()})
        self._start.append(fleet.start)
        self._stop += [fleet.close, functools.partial(asyncio.to_thread, events.close)]
        self._ready = gateway.ready

    def app(self) -> tuple[App, Health]:
        """All of it."""
        assert self._ready is not None
        health = Health(self._ready)
        self._routes.update(health.routes())
        self._routes.update(schema_routes(self._routes))
        return App(self._routes, self._settings.body_bytes, (), self._start, self._stop), health


def _logging(level: str) -> None:
    if level.upper() not in logging.getLevelNamesMapping():
        raise UserError(f"log_level: found {level}, expected debug, info, warning or error")
    log.setLevel(level.upper())
