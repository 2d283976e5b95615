"""Builds the application of each role from its settings. Imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
from pathlib import Path

import msgspec
import numpy as np
from starlette.routing import BaseRoute

from recsys.core.errors import UserError
from recsys.core.suppression import SuppressionList
from recsys.serving.events import EventStore, StoreError, open_store
from recsys.serving.explorer.page_files import page_routes
from recsys.serving.explorer.routes import ExplorerRoutes
from recsys.serving.forgetting import keep_expiring, keep_out, remove_expired
from recsys.serving.gateway.answer_check import Ids
from recsys.serving.gateway.database_host import DatabaseHost
from recsys.serving.gateway.discovery import Discovery, HostDiscovery, fixed_hosts
from recsys.serving.gateway.fleet import Fleet
from recsys.serving.gateway.gateway import Gateway
from recsys.serving.gateway.host_client import LocalHost
from recsys.serving.gateway.limits import Limits
from recsys.serving.gateway.router import Router
from recsys.serving.gateway.shared_canary import CANARY, SharedCanary, read_canary
from recsys.serving.gateway.similar import SimilarItems
from recsys.serving.gateway.tower_cache import TowerCache
from recsys.serving.host.alias_follower import AliasFollower
from recsys.serving.host.collection_search import CollectionSearch
from recsys.serving.host.desired_state import RolloutLocks, ServedVersions
from recsys.serving.host.host import Host
from recsys.serving.host.item_updates import ItemUpdates
from recsys.serving.host.release_watch import ReleaseWatch
from recsys.serving.host.updated_index import UpdatedIndex
from recsys.serving.http.admin_routes import GatewayAdmin, HostAdmin, PrivacyAdmin
from recsys.serving.http.admission import Admission
from recsys.serving.http.app import App, Hook
from recsys.serving.http.docs_page import docs_routes
from recsys.serving.http.endpoint import endpoints_of
from recsys.serving.http.openapi import openapi
from recsys.serving.http.outcome_routes import OutcomeRoutes
from recsys.serving.http.problems import ServerFault
from recsys.serving.http.routes import GatewayRoutes, HostRoutes, ProcessRoutes, SimilarRoutes
from recsys.serving.impressions import ImpressionStore, impressions_file, open_impressions
from recsys.serving.impressions.joining import OutcomeJoiner
from recsys.serving.impressions.recorder import ImpressionRecorder
from recsys.serving.observability.background import BackgroundThread
from recsys.serving.observability.metrics import WORKER_NUMBER, Metrics
from recsys.serving.observability.recall_monitor import RecallMonitor
from recsys.serving.observability.request_sampler import RequestSampler
from recsys.serving.pools import DATABASE, FILES
from recsys.serving.settings import Settings
from recsys.serving.shared_state import open_state
from recsys.serving.tls import KeptCertificate

log = logging.getLogger("recsys")


def build_app(settings: Settings) -> tuple[App, ProcessRoutes]:
    """Return the application of a role, with its release and event store loaded and checked.

    Raises:
        UserError: If the release or the event store cannot be used.
    """
    builder = _Builder(settings)
    if settings.role != "gateway" or builder.database is not None:
        builder.add_host()
    if settings.role != "host":
        builder.add_gateway()
    return builder.app()


def _process_name(settings: Settings) -> str:
    """Return a name that no other running process has, and that this one has after a restart."""
    port = str(settings.port or f"process {os.getpid()}")
    return ":".join([socket.gethostname(), port, *filter(None, [os.environ.get(WORKER_NUMBER)])])


class _Builder:
    """Collects the route table and the start and stop hooks. Methods must be called in the order of `build_app`."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._releases = settings, settings.releases
        self.database = settings.database
        self._routes: list[object] = []
        self._pages: list[BaseRoute] = []
        self._start: list[Hook] = []
        self._stop: list[Hook] = []
        self._host: Host | None = None
        self._updates: ItemUpdates | None = None
        self._towers: TowerCache | None = None
        if settings.role != "host":
            self._towers = TowerCache(
                self._releases, settings.towers, max_events=settings.max_events, load_seconds=settings.load_seconds
            )
        # Of calls to hosts.
        self._tls = settings.tls.client_context() if settings.role == "gateway" else None
        self._impressions: ImpressionStore | None = None
        self._metrics = Metrics()
        self._background = BackgroundThread(self._metrics)
        self._admission = Admission(settings.queue_seconds)
        try:
            self._state = open_state(settings.changes)
        except OSError as error:
            raise UserError(str(error)) from error

    def add_host(self) -> None:
        """Load the index of the release, or open its collection, and follow its alias."""
        settings = self._settings
        assert settings.release is not None
        # A wildcard bind address cannot identify the host.
        place = socket.gethostname() if settings.host in ("0.0.0.0", "::") else settings.host
        shard = settings.corpus_shard
        monitor = RecallMonitor(settings.monitor, self._background, metrics=self._metrics)
        updates = self._updates = ItemUpdates(
            settings.changes, shard, name=_process_name(settings), listens=(settings.host, settings.port)
        )
        if self.database is None:
            open_index = functools.partial(UpdatedIndex, updates=updates, monitor=monitor)
            host = Host(self._releases, f"{place}:{settings.port}", open_index=open_index, shard=shard)
        else:
            open_collection = functools.partial(CollectionSearch, updates=updates, database=self.database)
            host = Host(self._releases, self.database.address, open_index=open_collection, pool=DATABASE)
        self._host = host
        host.report_faults(updates.fault)
        served = ServedVersions(self._state, self._releases.store, settings.release)
        version = self._load_first(host, served)
        host.serve(version)
        if self._towers is not None:
            self._towers.keep(version, self._towers.open(version))
        self._routes += [
            HostRoutes(host, k=settings.k, batch=settings.batch, cost=settings.cost),
            HostAdmin(
                host,
                updates,
                towers=self._towers,
                served=served,
                locks=RolloutLocks(self._state),
                load_seconds=settings.load_seconds,
            ),
        ]
        # When others can see that this host listens, and before it accepts a connection.
        self._start.append(functools.partial(FILES.run, updates.read))
        self._stop.append(functools.partial(asyncio.to_thread, updates.close))
        if settings.release != self._releases.store.resolve(settings.release):
            follower = AliasFollower(
                self._releases,
                settings.release,
                host=host,
                towers=self._towers,
                metrics=self._metrics,
                keep=settings.towers,
                seconds=settings.follow_seconds,
                load_seconds=settings.load_seconds,
            )
            self._start.append(follower.start)
            self._stop.append(follower.stop)

        async def ready() -> None:
            host.require_ready()

        self._ready: Hook = ready

    def _load_first(self, host: Host, served: ServedVersions) -> str:
        """Load the version that the fleet serves, and its canary, and return the former."""
        release = self._settings.release
        assert release is not None
        _, manifest = self._releases.open(release)
        wanted = served.at_start(manifest.model)
        try:
            version = host.load(wanted)
        except UserError as error:
            if wanted == manifest.version:
                raise
            log.error("%s is served instead of %s, which the fleet serves: %s", manifest.version, wanted, error)
            version = host.load(release)
        with contextlib.suppress(OSError, msgspec.DecodeError):
            canary = read_canary(self._state.read(CANARY))
            if canary is not None and release != manifest.version:
                try:
                    host.load(canary.version)
                except UserError as error:
                    log.error("the canary %s is not loaded: %s", canary.version, error)
        return version

    def add_gateway(self) -> None:
        """Open the event store, and route requests to hosts."""
        settings = self._settings
        assert self._towers is not None
        try:
            events = open_store(
                settings.events,
                settings.max_events,
                max_age_days=settings.max_age_days,
                unreadable=self._metrics.unreadable.inc,
            )
            recorder = self._add_impressions(events)
            listed = SuppressionList(settings.suppression_list).lines()
            keep_out(events, listed, samples=Path(settings.samples), impressions=self._impressions)
        except StoreError as error:
            raise UserError(str(error)) from error
        if self._host is not None:
            local = LocalHost(self._host)
            client = local if self.database is None else DatabaseHost(local, self.database)
            shards: list[Discovery] = [fixed_hosts(client)]
        else:
            shards = [
                HostDiscovery(places, token=settings.host_token, tls=self._tls)
                for places in settings.shards or [settings.hosts or []]
            ]
        fleet = Fleet(shards, self._metrics)
        limits = Limits(
            k=settings.k,
            history=settings.history,
            batch=settings.batch,
            cost=settings.cost,
            store_seconds=settings.store_seconds,
        )
        if self._updates is None:
            # Additions and takedowns of the fleet, by which answers of hosts are checked.
            self._updates = ItemUpdates(settings.changes)
            self._stop.append(functools.partial(asyncio.to_thread, self._updates.close))
        towers, updates = self._towers, self._updates

        def screen(version: str, item_ids: Ids) -> tuple[Ids, Ids]:
            tower = towers.held(version)
            unknown: Ids = []
            if tower is not None:
                rows = tower.known_items.rows(item_ids)
                unknown = [item_ids[place] for place in np.flatnonzero(rows < 0).tolist()]
            return updates.not_added(version, unknown), updates.removed_of(item_ids)

        async def reread() -> None:
            with contextlib.suppress(ServerFault):
                await FILES.run(updates.read)

        router = Router(
            fleet,
            settings.model,
            metrics=self._metrics,
            screen=screen,
            reread=reread,
            is_usable=lambda version: not towers.has_failed(version),
        )
        sampler = RequestSampler(
            settings.samples_share,
            settings.samples,
            max_bytes=settings.samples_bytes,
            background=self._background,
            metrics=self._metrics,
            forgotten=events.suppressed,
        )
        gateway = Gateway(
            router,
            self._towers,
            events=events,
            limits=limits,
            metrics=self._metrics,
            sampler=sampler,
            admission=self._admission,
            impressions=recorder,
        )
        canary = SharedCanary(self._state, router, self._towers)
        similar = SimilarItems(
            router, self._releases, settings.towers, load_seconds=settings.load_seconds, impressions=recorder
        )
        self._routes += [
            GatewayRoutes(gateway),
            SimilarRoutes(similar, k=settings.k, exclude=settings.history),
            GatewayAdmin(router, self._towers, canary=canary),
            PrivacyAdmin(
                events,
                samples=settings.samples,
                suppressed=settings.suppression_list,
                impressions=self._impressions,
            ),
        ]
        if settings.has_page:
            self._routes.append(
                ExplorerRoutes(
                    router, self._releases, size=settings.towers, events=events, max_history=settings.history
                )
            )
            self._pages += page_routes()
        checks: list[asyncio.Task[None]] = []

        async def check_store() -> None:
            checks.append(asyncio.create_task(gateway.keep_checking_store()))
            checks.append(asyncio.create_task(canary.keep_following(self._metrics)))
            old = functools.partial(
                remove_expired,
                events,
                Path(settings.samples),
                days=settings.max_age_days,
                impressions=self._impressions,
            )
            checks.append(asyncio.create_task(keep_expiring(old, self._metrics)))

        async def end_checks() -> None:
            for task in checks:
                task.cancel()
            await asyncio.gather(*checks, return_exceptions=True)

        self._start += [fleet.start, check_store]
        # First, because they use the stores that the others close.
        self._stop.insert(0, end_checks)
        self._stop += [fleet.close, functools.partial(asyncio.to_thread, events.close)]
        self._ready = gateway.ready

    def _add_impressions(self, events: EventStore) -> ImpressionRecorder | None:
        """Open the store of impressions, and return what records answers; None if no answer is recorded."""
        settings = self._settings
        file = impressions_file(settings.events)
        if not settings.impressions_share and file is not None and not file.exists():
            return None
        hours = min(settings.impressions_hours, 24 * (settings.max_age_days or float("inf")))
        store = open_impressions(settings.events, keep_hours=hours, max_bytes=settings.impressions_bytes)
        self._impressions = store
        if not settings.impressions_share:
            # An earlier server recorded some, which are removed by age, and with users who are forgotten.
            self._stop.append(functools.partial(asyncio.to_thread, store.close))
            return None
        recorder = ImpressionRecorder(
            store, settings.impressions_share, metrics=self._metrics, forgotten=events.suppressed
        )
        joiner = OutcomeJoiner(store, recorder.hurry, window_hours=settings.outcomes_window_hours)
        self._routes.append(OutcomeRoutes(joiner, batch=settings.batch, metrics=self._metrics))
        self._stop += [functools.partial(asyncio.to_thread, close) for close in (recorder.close, store.close)]
        return recorder

    def _watched(self) -> Hook:
        """Return the check of readiness, with a watch over the files of the loaded releases."""
        if self._settings.verify_seconds is None:
            return self._ready
        is_ready, host, towers = self._ready, self._host, self._towers

        def versions() -> set[str]:
            held = [] if host is None else [v for model in host.version().values() for v in model.loaded]
            return {*held, *([] if towers is None else towers.keys)}

        watch = ReleaseWatch(self._releases, versions, metrics=self._metrics, seconds=self._settings.verify_seconds)
        self._start.append(watch.start)
        self._stop.append(watch.stop)

        async def ready() -> None:
            await is_ready()
            watch.require_sound()

        return ready

    def app(self) -> tuple[App, ProcessRoutes]:
        """Return the application of all rows that were added."""
        settings = self._settings
        server_tls = settings.tls.server_context(verifies_callers=settings.role == "host")
        if server_tls is not None:
            contexts = [one for one in (server_tls, self._tls) if one is not None]
            kept = KeptCertificate(settings.tls, contexts, expires=self._metrics.set_certificate)
            self._start.append(kept.start)
            self._stop.append(kept.stop)
        process = ProcessRoutes(self._watched(), self._metrics)
        endpoints = endpoints_of(*self._routes, process)
        if not settings.access_users:
            endpoints = [one for one in endpoints if one.path not in ("/v1/users", "/v1/explain")]
        process.document = openapi(endpoints)
        # Probes of gateways, admin calls and health are always answered. Writes and the page do not count as reads.
        posts = [one.path for one in endpoints if one.method == "POST" and not one.is_admin]
        admissions = dict.fromkeys(posts, self._admission)
        for path in ("/v1/events", "/v1/outcomes", "/v1/explain", "/v1/items/find"):
            if path in admissions:
                admissions[path] = Admission(settings.queue_seconds, most=256, least=256)
        app = App(
            endpoints,
            admissions=admissions,
            body_bytes=settings.body_bytes,
            access=settings.access,
            pages=[*self._pages, *docs_routes()],
            observe=self._metrics.count_answer,
            timed=self._metrics.timed,
            start=self._start,
            stop=[*self._stop, functools.partial(asyncio.to_thread, self._background.close)],
        )
        app.tls = server_tls
        return app, process
