"""Runs an application until SIGTERM or SIGINT. Imports no torch."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import logging
import resource
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

import uvicorn

from recsys.core.errors import UserError
from recsys.serving.assembly import build_app
from recsys.serving.http.acceptor import BACKLOG, Acceptor
from recsys.serving.http.connection import connections
from recsys.serving.http.hand_over import HandOver
from recsys.serving.http.problems import Problem, unavailable
from recsys.serving.http.routes import ProcessRoutes
from recsys.serving.http.sweeping import sweep
from recsys.serving.observability.logs import log_as_json
from recsys.serving.settings import Settings
from recsys.serving.workers import CANNOT_START, bind, supervise

log = logging.getLogger("recsys")

# Seconds after SIGTERM within which accepted requests must end.
SHUTDOWN_SECONDS = 30
# Seconds that /readyz waits for a busy event loop before it answers from the last known state.
READY_SECONDS = 0.04
# Descriptors that are not for connections of clients: files of releases, event stores, other servers.
SPARE_DESCRIPTORS = 256


class DrainingServer(uvicorn.Server):
    """Server that reports itself as not ready for some seconds before it stops accepting requests."""

    def __init__(
        self,
        config: uvicorn.Config,
        process: ProcessRoutes,
        *,
        settings: Settings,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(config)
        self._tls = tls
        self._process, self._drain_seconds, self._settings = process, settings.drain_seconds, settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, run the start hooks, and accept connections in a thread of its own."""
        for listening in sockets or []:
            listening.listen(BACKLOG)
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(1)
        loop, config, settings, tls = asyncio.get_running_loop(), self.config, self._settings, self._tls
        state = self.server_state

        kind: Any = config.http_protocol_class

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = kind(config, state, self.lifespan.state, loop)
            return made

        def take(opened: socket.socket) -> Awaitable[object]:
            seconds = settings.request_seconds if tls else None
            return loop.connect_accepted_socket(protocol, opened, ssl=tls, ssl_handshake_timeout=seconds)

        hand_over = HandOver(loop, take)
        readiness = LastReadiness(self._process.not_ready, loop)
        most = raise_descriptors(settings.connections)
        self.servers = []
        for listening in sockets or []:
            acceptor = Acceptor(
                listening,
                hand_over.add,
                num_open=lambda: len(state.connections) + len(hand_over),
                num_pending=hand_over.num_pending,
                ready=readiness,
                most=most,
                seconds=settings.request_seconds,
                admissions=kind.admissions,
                header_bytes=kind.header_bytes,
                peek=tls is None,
            )
            acceptor.start()
            self.servers.append(acceptor)  # type: ignore[arg-type]  # closed as uvicorn closes its own
        self._sweeping = loop.create_task(sweep(lambda: state.connections, settings.request_seconds))
        self.started = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT; a second signal does not wait."""
        if self._process.is_draining or not self._drain_seconds:
            self._process.is_draining = True
            super().handle_exit(sig, frame)
            return
        self._process.is_draining = True
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(loop.call_later, self._drain_seconds, super().handle_exit, sig, frame)


class LastReadiness:
    """Readiness of the server for a thread: the present one, or the last one while the event loop is busy."""

    def __init__(self, check: Callable[[], Awaitable[Problem | None]], loop: asyncio.AbstractEventLoop) -> None:
        self._check, self._loop = check, loop
        self._last: Problem | None = unavailable("the server is starting")

    def __call__(self) -> Problem | None:
        """Return None, or why the server is not ready."""

        async def check() -> Problem | None:
            self._last = await self._check()
            return self._last

        asked = asyncio.run_coroutine_threadsafe(check(), self._loop)
        try:
            return asked.result(READY_SECONDS)
        except (TimeoutError, concurrent.futures.CancelledError):
            return self._last


def raise_descriptors(wanted: int) -> int:
    """Raise the limit of open files as far as allowed, and return the number of connections that it leaves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_DESCRIPTORS
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < needed:
        log.warning("limits.connections: found %d, but the system allows %d open files", wanted, soft)
    return max(1, min(wanted, soft - SPARE_DESCRIPTORS))


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; raise `UserError` if the release, event store or address cannot be used."""
    if settings.workers == 1:
        _serve(settings)
        return
    # A release that cannot be opened is reported once, instead of by each process.
    if settings.release is not None and settings.role != "gateway":
        settings.releases.open(settings.release)
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
        http=connections(app.admissions, settings.header_bytes),
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
    # A thread that answers for health waits at most so long for the event loop, at each of its system calls.
    sys.setswitchinterval(0.001)
    listening = bind(settings.host, settings.port, shared=settings.workers > 1)
    scheme = "http" if app.tls is None else "https"
    log.info("serving at %s://%s:%d", scheme, settings.host, settings.port)
    listeners = [listening]
    if settings.admin_port is not None:
        listeners.append(bind(settings.admin_host or settings.host, settings.admin_port, shared=False))
        place, app.admin_port = listeners[1].getsockname()[:2]
        log.info("admin calls at %s://%s:%d", scheme, place, app.admin_port)
    DrainingServer(config, process, settings=settings, tls=app.tls).run(listeners)
