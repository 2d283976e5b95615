"""The loop starts cycles at regular times, also after a failure, and stops its cycle when it is stopped."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.core.errors import UserError
from recsys.operations.cycle.schedule import next_start, parse_every

# No bound of a test: a loop that hangs fails after so many seconds instead of never.
HANGS = 300


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1d", 86_400)])
def test_every(text: str, seconds: float) -> None:
    assert parse_every(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "d", "1w", "-1d", "0s", "1d2h"])
def test_text_that_is_no_time(text: str) -> None:
    with pytest.raises(UserError, match="expected a number with s, m, h or d"):
        parse_every(text)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        # The cycle took less than the period, exactly the period, and several periods; the last time was never late.
        (1000.5, 1010),
        (1010, 1010),
        (1010.5, 1020),
        (1049, 1050),
        # The clock was set back.
        (900, 1010),
    ],
)
def test_times_that_pass_while_a_cycle_runs_are_skipped(now: float, expected: float) -> None:
    assert next_start(1000, now, seconds=10) == expected


def test_cycles_start_again_after_a_failure_and_stop_with_the_loop(tmp_path: Path) -> None:
    """Each child reports its process id. The first two fail; the third waits until it is stopped."""
    pipe, count = tmp_path / "pipe", tmp_path / "count"
    os.mkfifo(pipe)
    count.touch()
    child = f"""
import os, pathlib, signal
count = pathlib.Path({str(count)!r})
count.write_text(count.read_text() + "x")
with open({str(pipe)!r}, "w") as opened:
    opened.write(f"{{os.getpid()}}\\n")
if len(count.read_text()) == 3:
    signal.pause()
raise SystemExit(1)
"""
    program = (
        f"import sys; from recsys.operations.cycle.schedule import loop; loop([sys.executable, '-c', {child!r}], 0.01)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    # Opened for writing too, so that it has no end between two children.
    descriptor = os.open(pipe, os.O_RDWR)
    running = subprocess.Popen([sys.executable, "-c", program], env=environment)
    received = b""
    while received.count(b"\n") < 3:
        assert select.select([descriptor], [], [], HANGS)[0]
        received += os.read(descriptor, 1024)
    os.close(descriptor)
    running.send_signal(signal.SIGTERM)
    assert running.wait(HANGS) == 128 + signal.SIGTERM
    third = int(received.split()[2])
    # The loop has waited for its child, so the process is gone.
    with pytest.raises(ProcessLookupError):
        os.kill(third, 0)
    assert count.read_text() == "xxx"
