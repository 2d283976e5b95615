"""The fault injection of `benchmarks/serving_faults.py`, for a short while."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from publishing import Published
from rich.console import Console

ROOT = Path(__file__).parents[2]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("serving_faults")


def test_mixed_and_wrong_answers_are_counted(faults: Any) -> None:
    # Two items; each pair of tower and index has scores of its own.
    scores = {("a", "a"): [0.9, 0.2], ("a", "b"): [0.5, 0.4], ("b", "a"): [0.3, 0.1], ("b", "b"): [0.8, 0.7]}
    answers = {pair: [(np.array(best), {"x": best[0], "y": best[1], "z": 0.0})] for pair, best in scores.items()}
    truth, record = faults.Truth([[]], answers), faults.Record()
    record.waiting["host"] = 1.0

    def answer(best: list[float], version: str = "a", index_version: str = "a") -> bytes:
        items = [{"item_id": name, "score": score} for name, score in zip("xy", best, strict=False)]
        said = {"version": version, "user_tower_version": version, "index_version": index_version, "host": "host"}
        return json.dumps(said | {"items": items}).encode()

    def outcome(status: int, body: bytes) -> dict[str, int]:
        record.outcomes.clear()
        faults.judge(record, truth, user=0, status=status, answer=body, now=1.5)
        return dict(record.outcomes)

    assert outcome(200, answer([0.90001, 0.2])) == {"answered": 1}
    assert outcome(200, answer([0.8, 0.7], "b", "b")) == {"answered": 1}
    # The items of a mixed pair, whatever versions the answer names; and versions that differ, whatever the items.
    assert outcome(200, answer([0.5, 0.4])) == {"answered": 1, "mixed": 1}
    assert outcome(200, answer([0.9, 0.2], "a", "b")) == {"answered": 1, "mixed": 1}
    # The other version's items, too few, and those of nobody.
    assert outcome(200, answer([0.8, 0.7])) == {"answered": 1, "wrong": 1}
    assert outcome(200, answer([0.9])) == {"answered": 1, "wrong": 1}
    assert outcome(200, answer([0.9, 0.3])) == {"answered": 1, "wrong": 1}
    # A refusal with its reason, and everything that is none.
    assert outcome(503, b"down") == {"unavailable": 1}
    assert outcome(500, b"bug") == outcome(0, b"closed") == {"failed": 1}
    assert record.used_again == [0.5]


def test_recovery_is_how_long_a_request_waited_after_the_fault(faults: Any) -> None:
    record = faults.Record()
    # Sent and done: before the fault at 10, under way when it came, and sent 1 s after it.
    record.sent, record.done = [9.0, 9.5, 11.0, 15.0], [9.5, 11.25, 11.5, 19.0]
    record.faults = [(10.0, "kill"), (30.0, "kill")]
    assert faults.recovery(record) == [1.25, 0.0]


def test_bars_on_durations_can_be_left_out_and_others_cannot(faults: Any) -> None:
    def is_reached(with_times: bool, **outcomes: int) -> bool:
        record = faults.Record(sent=[0.0], done=[60.0], faults=[(1.0, "kill")])
        record.outcomes.update({"answered": 1, **outcomes})
        record.versions.update("ab")
        reached = faults.report(record, Console(file=io.StringIO()), with_times=with_times)
        assert isinstance(reached, bool)
        return reached

    assert is_reached(False, unavailable=1)
    assert not is_reached(True)
    for outcome in ("mixed", "wrong", "failed"):
        assert not is_reached(False, **{outcome: 1})


@pytest.mark.slow
def test_no_mixed_versions_under_faults(published: Published, tmp_path: Path) -> None:
    # Its alias moves.
    shutil.copytree(published.store, tmp_path / "store")
    command = [sys.executable, str(ROOT / "benchmarks/serving_faults.py"), "--requests", "1500", "--connections", "4"]
    # Durations on a machine that also runs other tests say nothing; they have bars when the script runs alone.
    command += ["--no-times"]
    command += ["--store", str(tmp_path / "store"), "--versions", *published.versions]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    rows = {line.split("│")[1].strip(): line for line in done.stdout.splitlines() if line.count("│") == 5}
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"answered", "of mixed versions", "wrong", "failed", "rollouts: start", "rollouts: rollback"} <= rows.keys()
    assert "MISSED" not in done.stdout
