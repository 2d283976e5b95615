"""Online: retrieval over HTTP, from one paired release at a time. Runs until it is told to end."""

from collections.abc import Sequence

from omegaconf import DictConfig

from recsys.cli.entry import entry


def main(config: DictConfig) -> None:
    """Serve until SIGTERM or SIGINT; requests that were accepted are answered."""
    from recsys.serving.server import run
    from recsys.serving.settings import Settings

    limits = config.limits
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
        samples=config.samples.folder,
        samples_share=config.samples.share,
        samples_bytes=config.samples.bytes,
        admin_token=config.admin_token,
        k=limits.k,
        history=limits.history,
        batch=limits.batch,
        body_bytes=limits.body_bytes,
        log_level=config.log_level,
    )
    if config.data.root is not None and config.role != "host":
        # It brings a database engine, which serving has no use for.
        from recsys.serving.events.filling import fill

        fill(settings.store, settings.release, settings.events, settings.max_events, config.data.root)
    run(settings)


def _list(places: str | Sequence[str] | None) -> list[str] | None:
    return [places] if isinstance(places, str) else None if places is None else list(places)


if __name__ == "__main__":
    entry("serve", main)
