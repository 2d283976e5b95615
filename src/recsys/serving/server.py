"""From settings to a running server. Imports no torch."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType

import uvicorn

from recsys.errors import UserError
from recsys.serving.events import StoreError, open_store
from recsys.serving.following import Following
from recsys.serving.gateway import Gateway, Limits
from recsys.serving.host import Host
from recsys.serving.hosts import LocalRouter
from recsys.serving.http import App, Handler, Hook
from recsys.serving.problems import unavailable
from recsys.serving.releases import Releases
from recsys.serving.routes import AdminRoutes, GatewayRoutes, Health, HostRoutes
from recsys.serving.towers import TowerCache
from recsys.serving.workers import CANNOT_START, bind, supervise

log = logging.getLogger("recsys")

ROLES = ("all", "host")
# After SIGTERM, requests under way have so many seconds.
PATIENCE_SECONDS = 30


@dataclass(frozen=True)
class Settings:
    """Of one server; see `conf/serve.yaml`."""

    role: str
    release: str
    store: str
    model: str | None
    host: str
    port: int
    workers: int
    drain_seconds: float
    towers: int
    follow_seconds: float
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
            raise UserError("workers: with several, admin calls are not possible; they follow the alias of release=")


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
    app = build_app(settings)
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
    Server(config, app.health, settings.drain_seconds).run([listening])


class ServingApp(App):
    """An `App` that knows its health."""

    health: Health


def build_app(settings: Settings) -> ServingApp:
    """Everything that the role needs, loaded and checked.

    Raises:
        UserError: the release or the store of events cannot be used.
    """
    releases = Releases(settings.store)
    name = f"{settings.host}:{settings.port}"
    host = Host(releases, name)
    version = host.load(settings.release)
    host.serve(version)
    routes: dict[str, Mapping[str, Handler]] = {}
    stop: list[Hook] = []
    towers = None

    async def ready() -> None:
        if not host.is_ready:
            raise unavailable(f"{name} serves nothing yet")

    if settings.role == "all":
        towers = TowerCache(releases, settings.towers)
        towers.keep(towers.open(version))
        try:
            events = open_store(settings.events, settings.max_events)
        except StoreError as error:
            raise UserError(str(error)) from error
        limits = Limits(settings.k, settings.history, settings.batch, settings.body_bytes)
        gateway = Gateway(LocalRouter(host, settings.model), towers, events, limits)
        ready = gateway.ready
        routes.update(GatewayRoutes(gateway).routes())
        stop.append(functools.partial(asyncio.to_thread, events.close))
    routes.update(HostRoutes(host, settings.k).routes())
    routes.update(AdminRoutes(host, settings.admin_token, towers).routes())
    start: list[Hook] = []
    if settings.release != version:
        following = Following(releases, settings.release, host, towers, settings.towers, settings.follow_seconds)
        start.append(following.start)
        stop.insert(0, following.stop)
    health = Health(ready)
    routes.update(health.routes())
    app = ServingApp(routes, settings.body_bytes, (), start, stop)
    app.health = health
    return app


def _logging(level: str) -> None:
    if level.upper() not in logging.getLevelNamesMapping():
        raise UserError(f"log_level: found {level}, expected debug, info, warning or error")
    log.setLevel(level.upper())
