"""Check that events of Kafka are stored as if they were posted, however often their consumer is killed.

    python benchmarks/kafka_kills.py --events 20000 --kills 50

The brokers are those inside librdkafka. Events of some users, late ones and repeated ones among them, are sent to a
topic. A consumer stores them in SQLite and is killed (SIGKILL) again and again, at random moments after it has stored
something. In the end each history must equal that of the same events, appended directly. Exits with 1 if one does not.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from confluent_kafka import Consumer, Producer, TopicPartition

from recsys.serving.events import Event, SQLiteEvents

# A consumer as `recsys ingest` runs it, without a release: events have no features.
CONSUMER = """
import sys
from recsys.serving.events import SQLiteEvents
from recsys.serving.events.kafka import KafkaConsumer, KafkaSettings
from recsys.serving.observability.metrics import Metrics

address, path, batch = sys.argv[1:]
# The brokers give the partitions of a killed consumer to the next one after this time.
quick = {"session.timeout.ms": 3500, "heartbeat.interval.ms": 100}
settings = KafkaSettings(kafka=address, topics=["events"], group="ingest", batch=int(batch), options=quick)
KafkaConsumer(settings, SQLiteEvents(path), values=dict, metrics=Metrics()).run()
"""


def made(number: int, users: int, choose: random.Random) -> list[dict[str, int]]:
    """Events of which one in ten is late and one in twenty is repeated."""
    found: list[dict[str, int]] = []
    for at in range(number):
        if found and choose.random() < 0.05:
            found.append(choose.choice(found[-200:]))
            continue
        late = choose.randrange(1, 500) if choose.random() < 0.1 else 0
        event = {
            "user_id": choose.randrange(users),
            "item_id": choose.randrange(5000),
            "timestamp": 1000 + at // 3 - late,
        }
        found.append(event | {"timestamp": max(0, event["timestamp"])})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    choose = random.Random(given.seed)
    events = made(given.events, given.users, choose)
    producer = Producer({"test.mock.num.brokers": 3, "linger.ms": 1})
    address = ",".join(f"{one.host}:{one.port}" for one in producer.list_topics(timeout=10).brokers.values())
    partitions = producer.list_topics("events", timeout=10).topics["events"].partitions
    begin, kills, sent = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        direct = SQLiteEvents(Path(folder, "direct.sqlite"))
        direct.append([(one["user_id"], Event(one["item_id"], one["timestamp"])) for one in events])
        path = Path(folder, "ingested.sqlite")
        stored = SQLiteEvents(path)
        command = [sys.executable, "-c", CONSUMER, address, str(path), str(given.batch)]
        reader = Consumer({"bootstrap.servers": address, "group.id": "ingest"})
        places = [TopicPartition("events", number) for number in partitions]

        def committed() -> int:
            return sum(max(0, one.offset) for one in reader.committed(places, timeout=10))

        # Each consumer gets a share of the events, so that each is killed while it stores some.
        shares = [given.events * (number + 1) // (given.kills + 1) for number in range(given.kills + 1)]
        delivered = 0
        for number, end in enumerate(shares):
            for one in events[sent:end]:
                producer.produce("events", json.dumps(one), str(one["user_id"]))
            producer.flush()
            sent = end
            consumer = subprocess.Popen(command)
            target = choose.randrange(committed() + 1, end) if number < given.kills else end
            while committed() < target:
                if consumer.poll() is not None:
                    raise SystemExit(f"the consumer ended with {consumer.returncode}")
                time.sleep(choose.uniform(0, 0.01))
            time.sleep(choose.uniform(0, 0.01))
            consumer.kill()
            consumer.wait()
            kills += number < given.kills
            delivered = committed()
        users = range(given.users)
        wrong = sum(one != other for one, other in zip(stored.histories(users), direct.histories(users), strict=True))
        number = sum(map(len, stored.histories(users)))
    seconds = time.monotonic() - begin
    print(f"{delivered:,} messages, {kills} kills, {seconds:.0f} s: {number:,} events of {given.users} users stored")
    print(f"{wrong} histories differ from those of events that were appended directly")
    return 1 if wrong or delivered != given.events else 0


if __name__ == "__main__":
    sys.exit(main())
