"""A consumer stores the messages of a topic as POST /v1/events does, and continues after its last commit."""

from __future__ import annotations

import importlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest
from brokers import NOW, Broker
from confluent_kafka import KafkaError
from prometheus_client import generate_latest

from recsys.core.errors import UserError
from recsys.core.schema import Feature
from recsys.release.runtime.feature_values import ValueType
from recsys.serving.events import Event, SQLiteEvents, StoreError
from recsys.serving.events.kafka import KafkaConsumer, KafkaSettings
from recsys.serving.observability.metrics import Metrics

ROOT = Path(__file__).parents[3]
VALUES = {"rating": ValueType(Feature("rating", "interactions", "numeric", "event", 1))}


Start = Callable[..., "Running"]


class Running(NamedTuple):
    consumer: KafkaConsumer
    thread: threading.Thread

    def end(self) -> None:
        self.consumer.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()

    def counts(self) -> str:
        return generate_latest(self.consumer._metrics.registry).decode()


@pytest.fixture
def start(broker: Broker) -> Iterator[Start]:
    """Start a consumer in a thread."""
    running: list[Running] = []

    def one(store: Any, topic: str, *, options: Any = {}, **settings: Any) -> Running:  # noqa: B006 (not changed)
        # Mock brokers have members wait for others under the older protocol.
        quick = {"group.protocol": "consumer", **options}
        found = KafkaSettings(kafka=broker.address, topics=[topic], group=topic, options=quick, **settings)
        consumer = KafkaConsumer(found, store, values=lambda: VALUES, metrics=Metrics(), clock=lambda: NOW + 10)
        running.append(Running(consumer, threading.Thread(target=consumer.run)))
        running[-1].thread.start()
        return running[-1]

    yield one
    for found in running:
        found.end()


def until(holds: Callable[[], bool]) -> None:
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.005)
    raise AssertionError("it never holds")


def test_messages_are_stored_and_others_are_put_aside(broker: Broker, start: Start, tmp_path: Path) -> None:
    wrong = [b"{", None, b"\xff", {"user_id": 5, "item_id": 1, "devise": 1}, {"user_id": "a"}, [{"item_id": 1}],
             {"user_id": 5, "item_id": 1, "timestamp": NOW + 1000}]  # fmt: skip
    letters = broker.topic()
    good = [{"user_id": 5, "item_id": "late", "timestamp": NOW - 5, "rating": 4}, {"user_id": 5, "item_id": "now"}]
    listed = [{"user_id": "5", "item_id": n, "timestamp": n} for n in range(3)]
    topic = broker.topic(*wrong[:3], good[0], *wrong[3:], listed, good[1])
    store = SQLiteEvents(tmp_path / "events.db")
    running = start(store, topic, dead_letters=letters)
    until(lambda: len(store.history(5)) == 2 and len(store.history("5")) == 3)
    # A message without a time has its own: delivered again, it is the same event.
    assert store.history(5) == [Event("late", NOW - 5, {"rating": 4}), Event("now", NOW)]
    assert store.history("5") == [Event(n, n) for n in range(3)]
    found = broker.read(letters, len(wrong))
    assert len(found) == len(wrong)
    reasons = {dict(message.headers())["place"].decode(): dict(message.headers())["reason"] for message in found}
    assert all(place.startswith(f"{topic}/") for place in reasons)
    assert any(b"devise: no such feature" in reason for reason in reasons.values())
    assert "recsys_refused_messages_total 7.0" in running.counts()
    store.close()


def test_a_dead_letter_that_is_too_large_has_the_place_alone(broker: Broker, start: Start, tmp_path: Path) -> None:
    letters, topic = broker.topic(), broker.topic(b"x" * 3000, {"user_id": 1, "item_id": 1})
    store = SQLiteEvents(tmp_path / "events.db")
    # The client takes no smaller limit than this; consumers are not bound by it.
    start(store, topic, dead_letters=letters, options={"message.max.bytes": 2000})
    until(lambda: store.history(1) == [Event(1, NOW)])
    (found,) = broker.read(letters, 1)
    assert (found.value(), found.key()) == (None, b"list")
    assert dict(found.headers())["place"].decode().startswith(f"{topic}/")
    store.close()


def test_a_dead_letter_that_cannot_be_written_ends_the_consumer(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters, topic = broker.topic(), broker.topic(b"{")
    settings = KafkaSettings(kafka=broker.address, topics=[topic], group=topic, dead_letters=letters,
                             options={"group.protocol": "consumer"})  # fmt: skip
    store = SQLiteEvents(tmp_path / "events.db")
    consumer = KafkaConsumer(settings, store, values=lambda: VALUES, metrics=Metrics())

    class Failing:
        def produce(self, *_: Any, on_delivery: Any, **__: Any) -> None:
            self.on_delivery = on_delivery

        def flush(self) -> None:
            self.on_delivery(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), None)

    monkeypatch.setattr(consumer, "_producer", Failing())
    monkeypatch.setattr(consumer, "_commit", lambda _: pytest.fail("committed"))
    with pytest.raises(UserError, match=f"dead_letters: {letters}: "):
        consumer.run()
    store.close()


def test_a_restart_continues_after_the_last_commit(broker: Broker, start: Start, tmp_path: Path) -> None:
    topic = broker.topic(*({"user_id": 1, "item_id": n, "timestamp": n} for n in range(20)))
    store = SQLiteEvents(tmp_path / "events.db")
    first = start(store, topic, batch=3)
    until(lambda: len(store.history(1)) == 20)
    first.end()
    broker.send(topic, *({"user_id": 1, "item_id": n, "timestamp": n} for n in range(20, 25)))
    second = start(store, topic)
    until(lambda: len(store.history(1)) == 25)
    second.end()
    counts = second.counts()
    assert "recsys_events_total 5.0" in counts
    assert 'recsys_event_outcomes_total{what="stored"} 5.0' in counts
    assert 'recsys_ingest_lag{partition="' in counts
    store.close()


def test_long_lists_are_stored_in_parts(
    broker: Broker, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.serving.events.kafka.MAX_EVENTS", 3)
    topic = broker.topic([{"user_id": 1, "item_id": n, "timestamp": n} for n in range(7)])
    store = SQLiteEvents(tmp_path / "events.db")
    append = Mock(side_effect=store.append)
    monkeypatch.setattr(store, "append", append)
    start(store, topic)
    until(lambda: len(store.history(1)) == 7)
    assert [len(called.args[0]) for called in append.call_args_list] == [3, 3, 1]
    store.close()


def test_messages_wait_for_a_store_that_fails(
    broker: Broker, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.serving.events.kafka._REST_SECONDS", 0.02)
    topic = broker.topic({"user_id": 1, "item_id": 1})
    store = SQLiteEvents(tmp_path / "events.db")
    append, failures = store.append, itertools.count()

    def fail(events: Any) -> Any:
        if next(failures) < 3:
            raise StoreError("events: down")
        return append(events)

    monkeypatch.setattr(store, "append", fail)
    start(store, topic)
    until(lambda: store.history(1) == [Event(1, NOW)])
    assert next(failures) == 4
    store.close()


def test_what_cannot_be_used_is_refused_by_name(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.serving.events.kafka._START_SECONDS", 0.2)
    store = SQLiteEvents(tmp_path / "events.db")

    def open_one(**changed: Any) -> KafkaConsumer:
        given = {"kafka": broker.address, "topics": ["absent"], "group": "g", **changed}
        return KafkaConsumer(KafkaSettings(**given), store, values=lambda: VALUES, metrics=Metrics())

    # The brokers of tests make every topic that they are asked for.
    unknown = SimpleNamespace(error=KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
    answers = {None: {"events": None, "others": None}, "absent": {"absent": unknown}}
    with monkeypatch.context() as patched:
        admin = SimpleNamespace(list_topics=lambda topic=None, **_: SimpleNamespace(topics=answers[topic]))
        patched.setattr("recsys.serving.events.kafka.AdminClient", lambda *_, **__: admin)
        with pytest.raises(UserError, match="no topic absent; found events, others"):
            open_one()
    with pytest.raises(UserError, match=r"kafka: 127\.0\.0\.1:1: .*"):
        open_one(kafka="127.0.0.1:1")
    with pytest.raises(UserError, match="no.such.option"):
        open_one(options={"no.such.option": 1})
    with pytest.raises(UserError, match="kafka_options.enable.auto.commit"):
        open_one(options={"enable.auto.commit": True})
    with pytest.raises(UserError, match="expected another than dead_letters"):
        open_one(dead_letters="absent")
    for batch in (0, 2_000_000):
        with pytest.raises(UserError, match=f"batch: found {batch}, expected 1 to 100000"):
            open_one(batch=batch)
    store.close()


def test_the_benchmark_of_kills(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("kafka_kills")
    monkeypatch.setattr(
        "sys.argv", ["kafka_kills.py", "--events", "60", "--kills", "1", "--users", "3", "--batch", "7"]
    )
    assert benchmark.main() == 0
    assert "60 messages, 1 kills" in capfd.readouterr().out
