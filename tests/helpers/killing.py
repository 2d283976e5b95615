"""Writers that are killed at any moment: `python killing.py PLACE KILLS` prints what was acknowledged, and lost.

Each round forks writers that append lists of events and tell each acknowledgement through a pipe.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time

from recsys.serving.events import Event, EventStore, open_store

WRITERS, LIMIT = 2, 100_000


def numbered(name: str, number: int) -> list[tuple[str, Event]]:
    """List `number` of a writer: one to three events, each for the writer's own user and for one that all share."""
    events = [Event(f"{name}.{number}.{at}", number) for at in range(1 + number % 3)]
    return [(user, event) for event in events for user in (name, _shared(name))]


def _shared(name: str) -> str:
    return name.split("/")[0]


def write(place: str, name: str, pipe: int) -> None:
    """Append lists until the process is killed."""
    store = open_store(place, LIMIT)
    number = 0
    while True:
        store.append(numbered(name, number))
        os.write(pipe, b"%d\n" % number)
        number += 1


def kill_writers(place: str, names: list[str], seconds: float) -> dict[str, int]:
    """Kill each writer, and return the number of its lists that were acknowledged by then."""
    children: dict[int, tuple[str, int]] = {}
    for name in names:
        end, pipe = os.pipe()
        child = os.fork()
        if not child:
            try:
                write(place, name, pipe)
            finally:
                os._exit(1)
        os.close(pipe)
        children[child] = (name, end)
    # Wait for one acknowledgement of each writer, then for a random time.
    waiting = {end for _, end in children.values()}
    while waiting:
        waiting -= set(select.select(list(waiting), [], [])[0])
    time.sleep(random.uniform(0, seconds))
    acknowledged = {}
    for child, (name, end) in children.items():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with open(end, "rb") as told:
            acknowledged[name] = told.read().count(b"\n")
    return acknowledged


def missing(store: EventStore, name: str, acknowledged: set[int], attempted: int) -> tuple[int, int]:
    """Return the number of acknowledged lists that are not complete, and of lists that are stored in part."""
    held = {(user, event) for user in (name, _shared(name)) for event in _plain(store, user)}
    lost = torn = 0
    for number in range(attempted):
        found = [(user, event[:2]) in held for user, event in numbered(name, number)]
        lost += number in acknowledged and not all(found)
        torn += any(found) and not all(found)
    return lost, torn


def _plain(store: EventStore, user: str) -> list[tuple[object, ...]]:
    return [event[:2] for event in store.history(user)]


def main(place: str, kills: int) -> dict[str, int]:
    """Kill writers until `kills` are dead."""
    random.seed(0)
    total = lost = torn = 0
    for number in range(kills // WRITERS):
        acknowledged = kill_writers(place, [f"round{number}/{writer}" for writer in range(WRITERS)], 0.1)
        store = open_store(place, LIMIT)
        for name, lists in acknowledged.items():
            total += lists
            # One list may have been on its way.
            found = missing(store, name, set(range(lists)), lists + 1)
            lost, torn = lost + found[0], torn + found[1]
        store.close()
    return {"kills": kills // WRITERS * WRITERS, "acknowledged": total, "lost": lost, "torn": torn}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
