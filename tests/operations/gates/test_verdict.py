"""Verdicts: failed and untested outcomes, the table, and the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recsys.operations.gates.verdict import Outcome, Verdict, at_least, at_most, untested


def _verdict(*outcomes: Outcome) -> Verdict:
    return Verdict(
        run="runs/a",
        candidate="0" * 16,
        against="1" * 16,
        dataset_fingerprint="data",
        created="2026-01-01T00:00:00+00:00",
        outcomes=outcomes,
    )


@pytest.mark.parametrize(
    ("value", "low", "high"), [(1.0, "pass", "fail"), (0.5, "pass", "pass"), (0.4, "fail", "pass")]
)
def test_bounds_include_the_threshold(value: float, low: str, high: str) -> None:
    assert at_least("x", value, threshold=0.5, reason="").status == low
    assert at_most("x", value, threshold=0.5, reason="").status == high


def test_nan_never_passes() -> None:
    assert at_least("x", np.nan, threshold=0.0, reason="").status == "fail"
    assert at_most("x", np.nan, threshold=0.0, reason="").status == "fail"


def test_untested_checks_stop_nothing_and_are_counted() -> None:
    verdict = _verdict(at_least("x", 1.0, threshold=0.0, reason="").of("a"), untested("y", "too few").of("b"))
    assert verdict.passed
    assert verdict.summary() == "passed: 1 passed, 0 failed, 1 untested"
    stopped = _verdict(
        *verdict.outcomes,
        at_most("z", 2.0, threshold=1.0, reason="").of("c"),
        at_most("w", 2.0, threshold=1.0, reason="").of("c"),
    )
    assert not stopped.passed
    assert stopped.stopped_by == ["c"]


def test_file_is_plain_json_and_comes_back(tmp_path: Path) -> None:
    verdict = _verdict(
        at_least("x", np.inf, threshold=0.0, reason="why").of("a"),
        at_most("y", np.float64("nan"), threshold=np.float32(0.5), reason="", fits={"z": np.int64(3)}).of("b"),
    )
    path = verdict.save(tmp_path)
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["passed"] is False
    assert content["stopped_by"] == ["b"]
    assert [row["value"] for row in content["outcomes"]] == [None, None]
    assert content["outcomes"][1]["fits"] == {"z": 3}
    assert Verdict.load(path).stopped_by == ["b"]
    assert [file.name for file in tmp_path.iterdir()] == ["verdict.json"]
