"""The loop begins cycles in their time, and ends with its child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recsys.core.errors import UserError
from recsys.operations.cycle.schedule import parse_every


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1d", 86_400)])
def test_every(text: str, seconds: float) -> None:
    assert parse_every(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "d", "1w", "-1d", "0s", "1d2h"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UserError, match="expected a number with s, m, h or d"):
        parse_every(text)


def test_cycles_begin_again_also_after_a_failure_and_end_with_the_loop(tmp_path: Path) -> None:
    times = tmp_path / "times"
    child = f"""
import pathlib, time
times = pathlib.Path({str(times)!r})
with times.open("a") as file:
    file.write(f"{{time.time()}}\\n")
time.sleep(60 if len(times.read_text().splitlines()) == 3 else 0)
raise SystemExit(1)
"""
    program = (
        f"import sys; from recsys.operations.cycle.schedule import loop; loop([sys.executable, '-c', {child!r}], 0.5)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    running = subprocess.Popen([sys.executable, "-c", program], env=environment)
    give_up = time.monotonic() + 120
    while not times.exists() or len(times.read_text().splitlines()) < 3:
        assert time.monotonic() < give_up
        assert running.poll() is None
        time.sleep(0.05)
    begun = [float(line) for line in times.read_text().splitlines()]
    running.send_signal(signal.SIGTERM)
    # The third would have slept for a minute.
    assert running.wait(30) == 128 + signal.SIGTERM
    assert begun[1] - begun[0] > 0.3
    time.sleep(0.7)
    assert len(times.read_text().splitlines()) == 3
