"""Runs an application until SIGTERM or SIGINT. Imports no torch."""

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
from recsys.serving.host.releases import ReleaseCache
from recsys.serving.http.routes import ProcessRoutes
from recsys.serving.observability.logs import log_as_json
from recsys.serving.settings import Settings
from recsys.serving.workers import CANNOT_START, bind, supervise

log = logging.getLogger("recsys")

# Seconds after SIGTERM within which accepted requests must end.
SHUTDOWN_SECONDS = 30


class DrainingServer(uvicorn.Server):
    """Server that reports itself as not ready for some seconds before it stops accepting requests."""

    def __init__(self, config: uvicorn.Config, process: ProcessRoutes, *, drain_seconds: float) -> None:
        super().__init__(config)
        self._process, self._drain_seconds = process, drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT; a second signal does not wait."""
        if self._process.is_draining or not self._drain_seconds:
            self._process.is_draining = True
            super().handle_exit(sig, frame)
            return
        self._process.is_draining = True
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(loop.call_later, self._drain_seconds, super().handle_exit, sig, frame)


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; raise `UserError` if the release, event store or address cannot be used."""
    if settings.workers == 1:
        _serve(settings)
        return
    # A release that cannot be opened is reported once, instead of by each process.
    if settings.release is not None and settings.role != "gateway":
        ReleaseCache(settings.store).open(settings.release)
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
    app, process = build_app(settings)
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
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    # Loaded objects stay for the life of the process, and requests create no cycles. Collections would only cost time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    listening = bind(settings.host, settings.port, shared=settings.workers > 1)
    log.info("serving at http://%s:%d", settings.host, settings.port)
    DrainingServer(config, process, drain_seconds=settings.drain_seconds).run([listening])
