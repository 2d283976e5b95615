"""Runs cycles at regular times on one machine, each in its own process."""

from __future__ import annotations

import logging
import math
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from types import FrameType

from recsys.core.errors import UserError

log = logging.getLogger("recsys")

# The system clock may be changed while the loop sleeps, so it is read at least once an hour.
_MAX_SLEEP = 3600.0
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_every(text: str) -> float:
    """Return the seconds of `90s`, `30m`, `12h` or `1d`.

    Raises:
        UserError: If the text has another form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(text))
    if found is None or float(found[1]) == 0:
        raise UserError(f"every={text}: expected a number with s, m, h or d, such as 1d or 30m")
    return float(found[1]) * _UNITS[found[2]]


def next_start(last: float, now: float, *, seconds: float) -> float:
    """Return the time of the next cycle in seconds; times that passed while the last cycle ran are skipped."""
    return last + seconds * max(1, math.ceil((now - last) / seconds))


def loop(command: Sequence[str], seconds: float) -> None:
    """Run a command now and then every `seconds`, until SIGTERM or SIGINT.

    If a cycle fails, a warning is logged and the next one starts at its time.
    """

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    due = time.time()
    while True:
        with subprocess.Popen(command) as child:
            try:
                code = child.wait()
            finally:
                # If the loop is stopped, the cycle stops too. It continues when it is started again.
                if child.poll() is None:
                    child.terminate()
        if code != 0:
            log.warning("the cycle ended with exit code %d", code)
        due = next_start(due, time.time(), seconds=seconds)
        log.info("the next cycle starts at %s", datetime.fromtimestamp(due, UTC).isoformat(timespec="seconds"))
        while (left := due - time.time()) > 0:
            time.sleep(min(left, _MAX_SLEEP))
