"""Check that a killed server loses no acknowledged event, and that the next retrieve sees every one.

    python benchmarks/serving_event_kills.py --store releases --release production --kills 100

`serve.py role=all` is killed (SIGKILL) at random moments and restarted on the same event store. Meanwhile clients post
events and request items after each acknowledgement. The events are about items that no release contains: an answer
lists them as unknown if the user tower read them. After each kill the store must contain all acknowledged events. Exits
with 1 if an event is lost or was not seen.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from fault_cluster import ROOT, free_ports
from rich.progress import track
from serving_process import wait_until_ready

from recsys.serving.events import SQLiteEvents

FIRST_ITEM = 10**12
MAX_EVENTS = 1000


@dataclass
class Round:
    """Acknowledgements and answers between a start and a kill of the server."""

    acknowledged: dict[str, list[int]] = field(default_factory=dict)
    unseen: int = 0
    refused: int = 0


def post(connection: http.client.HTTPConnection, path: str, body: object) -> tuple[int, dict[str, object]]:
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def write(port: int, user: str, record: Round) -> None:
    """Post one event after the other until the server is killed."""
    mine = record.acknowledged.setdefault(user, [])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for number in range(MAX_EVENTS - 1):
        item = FIRST_ITEM + number
        try:
            status, _ = post(connection, "/v1/events", {"user_id": user, "item_id": item, "timestamp": number + 1})
            if status != 200:
                record.refused += 1
                continue
            mine.append(item)
            status, answer = post(connection, "/v1/retrieve", {"user_id": user, "k": 10})
        except (OSError, http.client.HTTPException):
            return
        unknown = answer.get("unknown_items", [])
        assert isinstance(unknown, list)
        record.unseen += status != 200 or item not in unknown


def live(command: list[str], port: int, *, number: int, clients: int, folder: Path) -> Round:
    """Start a server, post events, kill it at a random moment, and wait for the clients to end."""
    log = folder / "server.log"
    with log.open("ab") as opened:
        server = subprocess.Popen(command, cwd=folder, stdout=opened, stderr=opened)
    record = Round()
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", server, log=log)
        users = [f"{number}/{client}" for client in range(clients)]
        threads = [threading.Thread(target=write, args=(port, user, record)) for user in users]
        for thread in threads:
            thread.start()
        time.sleep(random.uniform(0.05, 0.6))
        server.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join()
    finally:
        server.kill()
        server.wait()
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("releases"))
    parser.add_argument("--release", default="production")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--clients", type=int, default=4)
    given = parser.parse_args()
    total = lost = unseen = refused = 0
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        events = folder / "events.sqlite"
        command = [
            sys.executable, str(ROOT / "serve.py"), f"port={port}", f"store={given.store.absolute()}",
            f"release={given.release}", f"events={events}", f"max_events={MAX_EVENTS}", "log_level=warning",
        ]  # fmt: skip
        for number in track(range(given.kills), "kills"):
            record = live(command, port, number=number, clients=given.clients, folder=folder)
            unseen, refused = unseen + record.unseen, refused + record.refused
            store = SQLiteEvents(events, MAX_EVENTS)
            for user, items in record.acknowledged.items():
                total += len(items)
                lost += len(set(items) - {event.item_id for event in store.history(user)})
            store.close()
    print(f"{given.kills} kills, {total:,} acknowledged events: {lost} lost, {unseen} not seen by the next retrieve")
    print(f"{refused} refused")
    sys.exit(1 if lost or unseen or refused else 0)


if __name__ == "__main__":
    main()
