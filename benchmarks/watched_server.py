"""serve.py with a watch on its event loop, for `serving_fuzz.py`.

    python benchmarks/watched_server.py blocks.jsonl OPTION...

A heartbeat runs on the loop every few milliseconds. When it is late, a line of the file says since when (`at`, seconds
since 1970), for how many ms the thread of the loop computed (`computed`), and for how many ms the loop was blocked
(`blocked`): late, without the time in which threads of the server waited for a core that others had. `stack` has the
innermost calls of the loop at a moment when it was late.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from recsys.cli.main import run
from recsys.serving.server import DrainingServer

EVERY, REPORTED = 0.005, 0.02


def waited() -> float:
    """Return the seconds in which the threads of this process waited for a core, as the kernel counts them."""
    total = 0
    for task in os.scandir("/proc/self/task"):
        try:
            total += int(Path(task.path, "schedstat").read_text().split()[1])
        except FileNotFoundError:
            # The thread has ended.
            continue
    return total / 1e9


class Stack(threading.Thread):
    """Notes where the thread of the loop is when a heartbeat is late."""

    def __init__(self, thread: int) -> None:
        super().__init__(daemon=True)
        self._thread, self.began, self.seen = thread, time.monotonic(), [""]

    def run(self) -> None:
        while True:
            time.sleep(REPORTED / 2)
            if not self.seen and time.monotonic() - self.began > REPORTED + EVERY:
                frames = traceback.extract_stack(sys._current_frames()[self._thread])[-8:]
                self.seen = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames)]


async def beat(path: Path) -> None:
    """Report late heartbeats, until cancelled."""
    stack = Stack(threading.get_ident())
    stack.start()
    with path.open("a", buffering=1) as file:
        # The figures themselves take time, so they are read before each pause and after it.
        while True:
            before, computed, began = waited(), time.thread_time(), time.monotonic()
            stack.began, stack.seen = began, []
            await asyncio.sleep(EVERY)
            late = time.monotonic() - began - EVERY
            computed = time.thread_time() - computed
            if max(late, computed) > REPORTED:
                blocked = max(0.0, late - (waited() - before))
                found: dict[str, Any] = {
                    "at": time.time() - late,
                    "computed": 1000 * computed,
                    "blocked": 1000 * blocked,
                }
                found["stack"] = " < ".join(stack.seen)
                file.write(json.dumps(found) + "\n")


def main() -> None:
    path, startup = Path(sys.argv[1]), DrainingServer.startup
    kept: list[asyncio.Task[None]] = []

    async def start(self: DrainingServer, *given: Any, **named: Any) -> None:
        await startup(self, *given, **named)
        kept.append(asyncio.create_task(beat(path)))

    DrainingServer.startup = start  # type: ignore[method-assign]  # the watch
    run("serve", sys.argv[2:])


if __name__ == "__main__":
    main()
