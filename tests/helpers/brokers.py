"""Brokers of Kafka inside librdkafka."""

from __future__ import annotations

import itertools
import json
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition

# Time of all messages.
NOW = 1_700_000_000
_numbers = itertools.count()


class Broker:
    """The brokers inside librdkafka, with one topic for each test."""

    def __init__(self) -> None:
        self._producer = Producer({"test.mock.num.brokers": 1, "linger.ms": 0})
        (broker,) = self._producer.list_topics(timeout=10).brokers.values()
        self.address = f"{broker.host}:{broker.port}"

    def topic(self, *messages: Any) -> str:
        name = f"events{next(_numbers)}"
        self._producer.list_topics(name, timeout=10)
        self.send(name, *messages)
        return name

    def send(self, topic: str, *messages: Any) -> None:
        for message in messages:
            value = message if message is None or isinstance(message, bytes) else json.dumps(message)
            # The key decides the partition, and with it the order.
            user = message.get("user_id") if isinstance(message, dict) else "list"
            self._producer.produce(topic, value, str(user), timestamp=1000 * NOW)
        self._producer.flush()

    def read(self, topic: str, number: int) -> list[Message]:
        reader = Consumer({"bootstrap.servers": self.address, "group.id": "reader", "auto.offset.reset": "earliest"})
        reader.assign([TopicPartition(topic, partition, 0) for partition in range(4)])
        found: list[Message] = []
        for _ in range(100):
            found += [message for message in reader.consume(number, 0.2) if message.error() is None]
            if len(found) >= number:
                break
        reader.close()
        return found
