"""The fault injection of `benchmarks/serving_faults.py`, for a short while."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from publishing import Published

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_no_mixed_versions_under_faults(published: Published, tmp_path: Path) -> None:
    # Its alias moves.
    shutil.copytree(published.store, tmp_path / "store")
    command = [sys.executable, str(ROOT / "benchmarks/serving_faults.py"), "--requests", "1500", "--connections", "4"]
    command += ["--store", str(tmp_path / "store"), "--versions", *published.versions]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    # Times are those of a machine that also runs other tests: they are looked at where the script is run for them.
    rows = {line.split("│")[1].strip(): line for line in done.stdout.splitlines() if line.count("│") == 5}
    assert rows, done.stdout + done.stderr
    missed = {name for name, line in rows.items() if "MISSED" in line}
    assert missed <= {"recovery, longest", "used again, longest", "availability"}, done.stdout
    assert done.returncode == bool(missed)
    assert {"answered", "of mixed versions", "wrong", "rollouts: start", "rollouts: rollback"} <= rows.keys()
