"""Store the events of Kafka topics, until SIGTERM or SIGINT.

    recsys ingest kafka=127.0.0.1:9092 topic=events

A message is the body of POST /v1/events: one event or a list, as JSON. It is checked as there, stored, and committed
then. Other messages are counted, logged by their place, put into the topic `dead_letters` if there is one, and
skipped. A restart continues after the last commit. Several processes of one group share the partitions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Store messages until the process is told to end.

    Raises:
        UserError: If the release, the event store or the brokers cannot be used.
    """
    import signal

    from omegaconf import OmegaConf
    from prometheus_client import start_http_server

    from recsys.core.errors import UserError
    from recsys.core.suppression import SuppressionList
    from recsys.serving.events import StoreError, open_store
    from recsys.serving.events.followed_values import FollowedValues
    from recsys.serving.events.kafka import KafkaConsumer, KafkaSettings
    from recsys.serving.observability.logs import log_as_json
    from recsys.serving.observability.metrics import Metrics

    options: Any = OmegaConf.to_container(config.kafka_options, resolve=True)
    settings = KafkaSettings(
        kafka=config.kafka,
        topics=[config.topic] if isinstance(config.topic, str) else list(config.topic),
        group=config.group,
        dead_letters=config.dead_letters,
        batch=config.batch,
        options=dict(_dotted(options)),
    )
    log_as_json(config.log_level)
    metrics = Metrics()
    values = FollowedValues(config.store, config.release, seconds=config.follow_seconds)
    try:
        store = open_store(
            config.events,
            config.max_events,
            max_age_days=config.max_age_days,
            unreadable=metrics.unreadable.inc,
        )
        try:
            store.suppress(SuppressionList(config.suppressed).lines())
            consumer = KafkaConsumer(settings, store, values=values, metrics=metrics)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: consumer.stop())
            if config.metrics_port is not None:
                start_http_server(config.metrics_port, config.metrics_host, registry=metrics.registry)
            consumer.run()
        finally:
            store.close()
    except StoreError as error:
        raise UserError(str(error)) from error


def _dotted(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the options by their names at the client, such as `sasl.username`."""
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
