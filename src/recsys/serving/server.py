"""Runs an application until it is told to end. Imports no torch."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import sys
from types import FrameType

import uvicorn

from recsys.core.errors import UserError
from recsys.serving.assembly import build_app
from recsys.serving.host.releases import Releases
from recsys.serving.http.routes import Health
from recsys.serving.observability.logs import log_as_json
from recsys.serving.settings import Settings
from recsys.serving.workers import CANNOT_START, bind, supervise

log = logging.getLogger("recsys")

# After SIGTERM, requests under way have so many seconds.
PATIENCE_SECONDS = 30


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
    try:
        _serve(settings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(CANNOT_START)


def _serve(settings: Settings) -> None:
    log_as_json(settings.log_level)
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
        proxy_headers=False,
        log_config=None,
        timeout_graceful_shutdown=PATIENCE_SECONDS,
    )
    # What is loaded stays; what requests make dies with them. Collections that look through all of it find nothing.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    listening = bind(settings.host, settings.port, shared=settings.workers > 1)
    log.info("serving at http://%s:%d", settings.host, settings.port)
    Server(config, health, settings.drain_seconds).run([listening])
