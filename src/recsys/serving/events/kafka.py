"""Consumer that stores the events of Kafka topics. Imports no torch.

Messages are stored first and committed then, so a message that is delivered again after a crash is stored once: its
events have the time that they say, or else that of the message.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from prometheus_client import Counter, Gauge

from recsys.core.errors import UserError
from recsys.release.runtime.feature_values import ValueType
from recsys.serving.events.event_store import Event, EventStore, StoreError, UserId
from recsys.serving.events.grouping import MAX_EVENTS
from recsys.serving.events.incoming import parse_events
from recsys.serving.observability.metrics import Metrics

log = logging.getLogger("recsys")

# Seconds in which the brokers must answer at the start, and to wait for messages, and for a store that fails.
_START_SECONDS, _POLL_SECONDS, _REST_SECONDS = 10.0, 0.5, 1.0
# Largest batch: dead letters that the client takes before it sends them.
_MOST = 100_000
# Characters of the reason in a dead letter.
_REASON = 500
# Seconds between two checks of the event store, as in a gateway.
_CHECK_EVERY = 3.0
# Settings of the client that commits after storing.
_OWN = {"enable.auto.commit": False, "enable.auto.offset.store": False, "enable.partition.eof": False}


@dataclass(frozen=True, kw_only=True)
class KafkaSettings:
    """Settings of a consumer; `conf/ingest.yaml` describes each."""

    kafka: str
    topics: Sequence[str]
    group: str
    dead_letters: str | None = None
    batch: int = 1000
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.topics or self.dead_letters in self.topics:
            raise UserError(f"topic: found {', '.join(self.topics) or 'none'}, expected another than dead_letters")
        if not 1 <= self.batch <= _MOST:
            raise UserError(f"batch: found {self.batch}, expected 1 to {_MOST}")
        if wrong := self.options.keys() & {*_OWN, "bootstrap.servers", "group.id"}:
            raise UserError(f"kafka_options.{min(wrong)}: expected no such option, because the consumer sets it")


class _Refused(NamedTuple):
    message: Message
    reason: str


class KafkaConsumer:
    """Consumer of one group, in one thread. Several processes of the group share the partitions of the topics.

    Args:
        values: returns the features that an event may have now.
        metrics: counts events as over HTTP, and refused messages.
        clock: time in seconds since 1970.

    Raises:
        UserError: If the brokers do not answer, or have no such topic.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        store: EventStore,
        *,
        values: Callable[[], Mapping[str, ValueType]],
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._store, self._values, self._metrics, self._clock = settings, store, values, metrics, clock
        refused = "Messages that were not stored, because they are no valid events."
        self._refused = Counter("recsys_refused_messages_total", refused, registry=metrics.registry)
        waiting = "Messages of a partition after the last one that was stored."
        self._waiting = Gauge("recsys_ingest_lag", waiting, ("topic", "partition"), registry=metrics.registry)
        self._stop, self._checked = threading.Event(), time.monotonic()
        client = {"bootstrap.servers": settings.kafka, **settings.options}
        try:
            self._check_topics(client)
            own = {"auto.offset.reset": "earliest", **client, "group.id": settings.group, **_OWN}
            self._consumer = Consumer(own, logger=log)
            self._producer = None
            if settings.dead_letters is not None:
                self._producer = Producer({"enable.idempotence": True, **_producing(client)}, logger=log)
        except KafkaException as error:
            raise UserError(f"kafka: {settings.kafka}: {error.args[0].str()}") from error

    def _check_topics(self, client: Mapping[str, Any]) -> None:
        """Refuse topics that the brokers neither have nor make when they are asked for."""
        admin = AdminClient(_producing(client), logger=log)
        for topic in filter(None, [*self._settings.topics, self._settings.dead_letters]):
            error = admin.list_topics(topic, timeout=_START_SECONDS).topics[topic].error
            if error is not None and error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                known = sorted(admin.list_topics(timeout=_START_SECONDS).topics)
                raise UserError(f"kafka: {self._settings.kafka}: no topic {topic}; found {', '.join(known) or 'none'}")

    def stop(self) -> None:
        """Let `run` return when the messages that it has are stored and committed. Signal handlers may call it."""
        self._stop.set()

    def run(self) -> None:
        """Store messages until `stop`.

        Raises:
            UserError: If the client fails for good, or a refused message cannot be put aside.
        """
        self._consumer.subscribe(list(self._settings.topics))
        try:
            while not self._stop.is_set():
                self._check_store()
                # The first message is stored at once, with those that are here already.
                first = self._consumer.poll(_POLL_SECONDS)
                if first is not None:
                    self._take([first, *self._consumer.consume(self._settings.batch - 1, 0)])
        except KafkaException as error:
            raise UserError(f"kafka: {self._settings.kafka}: {error.args[0].str()}") from error
        finally:
            self._consumer.close()

    def _check_store(self) -> None:
        if time.monotonic() - self._checked > _CHECK_EVERY:
            self._checked = time.monotonic()
            with _logged():
                self._store.check()

    def _take(self, found: Sequence[Message]) -> None:
        messages = [message for message in found if not self._is_error(message)]
        values, now = self._values(), self._clock()
        events: list[tuple[UserId, Event]] = []
        refused: list[_Refused] = []
        for message in messages:
            try:
                events += _events(message, values, now=now)
            except UserError as error:
                refused.append(_Refused(message, str(error)))
        # A message may have any number, and a store does not answer in time for too many.
        for begin in range(0, len(events), MAX_EVENTS):
            if not self._append(events[begin : begin + MAX_EVENTS]):
                return
        self._put_aside(refused)
        self._commit({(message.topic(), message.partition()): message.offset() for message in messages})

    def _is_error(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return False
        if error.fatal():
            raise KafkaException(error)
        log.warning("kafka: %s", error.str())
        return True

    def _append(self, events: Sequence[tuple[UserId, Event]]) -> bool:
        """Store events. Try again while the store does not answer. Return False if the consumer was stopped first."""
        while True:
            try:
                outcomes = self._store.append(events)
            except StoreError as error:
                log.warning("events are not stored, and the messages wait: %s", error)
                if self._stop.wait(_REST_SECONDS):
                    return False
                # A write may need the settings to be right again.
                with _logged():
                    self._store.check()
                continue
            self._metrics.stored_events.inc(len(events))
            for outcome in outcomes:
                self._metrics.event_outcomes[outcome].inc()
            return True

    def _put_aside(self, refused: Sequence[_Refused]) -> None:
        if not refused:
            return
        self._refused.inc(len(refused))
        log.warning("%d messages refused, the first at %s", len(refused), _place(refused[0].message))
        for message, reason in refused:
            # Reasons have values of the message, which may name a user.
            log.debug("%s: %s", _place(message), reason)
            self._send(message, reason, message.value())
        if self._producer is not None:
            # Calls `delivered`, whose error comes from here.
            self._producer.flush()

    def _send(self, message: Message, reason: str, value: bytes | None) -> None:
        """Send a dead letter; without its value if it would be too large, because a header has its place."""
        topic, producer = self._settings.dead_letters, self._producer
        if topic is None or producer is None:
            return
        headers: dict[str, str | bytes | None] = {"reason": reason[:_REASON].encode("utf-8", "replace")}
        headers["place"] = _place(message)

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE and value is not None:
                self._send(message, reason, None)
            elif error is not None:
                raise UserError(f"dead_letters: {topic}: {error}")

        try:
            producer.produce(topic, value, message.key(), headers=headers, on_delivery=delivered)
        except KafkaException as error:
            delivered(error.args[0], message)

    def _commit(self, last: Mapping[tuple[Any, Any], Any]) -> None:
        """Commit the offset of the last message of each partition."""
        if not last:
            return
        offsets = [TopicPartition(topic, partition, offset + 1) for (topic, partition), offset in last.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            # The partition has another consumer by now, which gets these messages again.
            log.warning("kafka: %s", error.args[0].str())
        for one in offsets:
            # Known from the last answer of the broker.
            bounds = self._consumer.get_watermark_offsets(one, cached=True)
            if bounds is not None:
                self._waiting.labels(one.topic, str(one.partition)).set(max(0, bounds[1] - one.offset))


def _events(message: Message, values: Mapping[str, ValueType], *, now: float) -> list[tuple[UserId, Event]]:
    kind, milliseconds = message.timestamp()
    try:
        posted = msgspec.json.decode(message.value() or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"found no JSON ({error})") from error
    # The time of storing would make another event of it when it is delivered again.
    arrived = None if kind == TIMESTAMP_NOT_AVAILABLE else milliseconds / 1000
    return parse_events(posted, values, now=now, arrived=arrived)


def _place(message: Message) -> str:
    return f"{message.topic()}/{message.partition()}@{message.offset()}"


def _producing(client: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are not of consumers alone."""
    return {name: value for name, value in client.items() if not name.startswith(_CONSUMING)}


_CONSUMING = (
    "auto.",
    "fetch.",
    "max.poll",
    "session.",
    "heartbeat.",
    "partition.assignment",
    "group.",
    "isolation.",
    "queued.",
)


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        log.error("%s", error)
