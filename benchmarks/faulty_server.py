"""serve.py with a clock that can be stepped and faults that can be planted, for `serving_history.py`.

    python benchmarks/faulty_server.py CLOCK FAULT OPTION...

The clock of the process is ahead by the seconds in the file CLOCK. FAULT is `none`, or what a checker must find:
`lost` (some events are acknowledged and not stored), `mixed` (some searches use another version of the index) or
`stale` (some takedowns are not applied).
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

from recsys.cli.main import run
from recsys.serving.events import Outcome
from recsys.serving.events.valkey import ValkeyEvents
from recsys.serving.host.host import Host
from recsys.serving.host.item_updates import ItemUpdates

SHARE, SHARE_OF_TAKEDOWNS = 0.05, 0.3


def step_clock(path: Path) -> None:
    """Add the seconds of a file to the clock; the file is read again every tenth of a second."""
    real, read = time.time, [0.0, 0.0]

    def stepped() -> float:
        now = real()
        if now - read[0] > 0.1:
            read[:] = now, float(path.read_text() or 0)
        return now + read[1]

    time.time = stepped


def plant(fault: str) -> None:
    """Make the server do something wrong now and then."""
    append, search, apply = ValkeyEvents.append, Host.search, ItemUpdates._apply

    def lossy(self: Any, events: Any) -> Any:
        return [Outcome.STORED] * len(events) if random.random() < SHARE else append(self, events)

    def mixed(self: Any, request: Any) -> Any:
        asked = request.version
        others = [version for held in self._loaded.values() for version in held if version != asked]
        if others and random.random() < SHARE:
            request.version = others[0]
        answer = search(self, request)
        answer.version = asked
        return answer

    def stale(self: Any, record: Any) -> None:
        if "take_down" not in record or random.random() > SHARE_OF_TAKEDOWNS:
            apply(self, record)

    if fault == "lost":
        ValkeyEvents.append = lossy  # type: ignore[method-assign]  # planted
    elif fault == "mixed":
        Host.search = mixed  # type: ignore[method-assign]  # planted
    elif fault == "stale":
        ItemUpdates._apply = stale  # type: ignore[method-assign]  # planted


if __name__ == "__main__":
    step_clock(Path(sys.argv[1]))
    plant(sys.argv[2])
    run("serve", sys.argv[3:])
