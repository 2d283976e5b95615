"""A loop for one machine: one cycle every so often, each in a process of its own."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import FrameType

from recsys.core.errors import UserError

log = logging.getLogger("recsys")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_every(text: str) -> float:
    """Seconds of `90s`, `30m`, `12h` or `1d`.

    Raises:
        UserError: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(text))
    if found is None or float(found[1]) == 0:
        raise UserError(f"every={text}: expected a number with s, m, h or d, such as 1d or 30m")
    return float(found[1]) * _UNITS[found[2]]


def loop(command: Sequence[str], seconds: float) -> None:
    """Run the command now and then every so many seconds, until SIGTERM or SIGINT.

    A cycle that fails is told, and the next one is tried in its time. Times that pass while a cycle runs are left out.

    Args:
        command: of one cycle.
        seconds: from one beginning to the next.
    """

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    begin = time.time()
    while True:
        with subprocess.Popen(command) as child:
            try:
                code = child.wait()
            finally:
                # Where the loop is told to end: the cycle goes on when it is started again.
                if child.poll() is None:
                    child.terminate()
        if code != 0:
            log.warning("the cycle ended with exit code %d", code)
        begin += seconds * max(1, -int(-(time.time() - begin) // seconds))
        log.info("the next cycle begins at %s", datetime.fromtimestamp(begin, UTC).isoformat(timespec="seconds"))
        while (left := begin - time.time()) > 0:
            time.sleep(min(left, timedelta(hours=1).total_seconds()))
