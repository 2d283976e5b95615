"""Answer requests over HTTP from one release at a time, until SIGTERM or SIGINT.

    recsys serve release=production                          one process: gateway, index and page
    recsys serve role=host release=production port=8081      an ANN host
    recsys serve role=gateway hosts=[http://A:8081,http://B:8081]
    recsys serve release=production data.root=own            with the histories that the release was trained on

Requests that were accepted before the signal are answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Serve until SIGTERM or SIGINT."""
    from recsys.cli.preflight import check_state
    from recsys.serving.server import run
    from recsys.serving.settings import Settings
    from recsys.serving.tls import TLS

    limits = config.limits
    if config.role != "host":
        check_state("events", config.events, store=config.store)
    if config.role != "gateway":
        check_state("changes", config.changes, store=config.store)
    settings = Settings(
        role=config.role,
        release=config.release,
        store=config.store,
        model=config.model,
        host=config.host,
        port=config.port,
        workers=config.workers,
        drain_seconds=config.drain_seconds,
        towers=config.towers,
        follow_seconds=config.follow_seconds,
        hosts=_list(config.hosts),
        shards=None if config.shards is None else [_list(places) or [] for places in config.shards],
        shard=config.shard,
        changes=config.changes,
        monitor=config.monitor,
        events=config.events,
        max_events=config.max_events,
        tls=TLS(config.tls.cert, config.tls.key, config.tls.ca),
        max_age_days=config.max_age_days,
        suppressed=config.suppressed,
        samples=config.samples.folder,
        samples_share=config.samples.share,
        samples_bytes=config.samples.bytes,
        page=config.page,
        admin_token=config.admin_token,
        admin_port=config.admin.port,
        admin_host=config.admin.host,
        read_token=config.tokens.read,
        events_token=config.tokens.events,
        host_token=config.tokens.host,
        access_hosts=_list(config.access.hosts),
        access_origins=_list(config.access.origins) or [],
        access_users=config.access.users,
        k=limits.k,
        history=limits.history,
        batch=limits.batch,
        body_bytes=limits.body_bytes,
        log_level=config.log_level,
        cost=limits.cost,
        queue_seconds=limits.queue_seconds,
        connections=limits.connections,
        request_seconds=limits.request_seconds,
        header_bytes=limits.header_bytes,
        store_seconds=config.store_seconds,
        load_seconds=config.load_seconds,
        impressions_share=config.impressions.share,
        impressions_hours=config.impressions.keep_hours,
        impressions_bytes=config.impressions.bytes,
        outcomes_window_hours=config.outcomes.window_hours,
        trial_seconds=config.trial.seconds,
        trial_bytes=config.trial.bytes,
        verify_seconds=config.verify_seconds,
    )
    if config.data.root is not None and config.role != "host":
        # The import loads a database engine, which serving itself does not need.
        from recsys.serving.events.backfill import fill

        fill(
            settings.store,
            settings.release,
            events=settings.events,
            max_events=settings.max_events,
            root=config.data.root,
            suppressed=settings.suppression_list,
            max_age_days=settings.max_age_days,
        )
    run(settings)


def _list(places: str | Sequence[str] | None) -> list[str] | None:
    return [places] if isinstance(places, str) else None if places is None else list(places)
