"""Run folders for tables of runs: state, metrics and overrides."""

from __future__ import annotations

import json
from pathlib import Path

import yaml


def write(path: Path, overrides: list[str] | None = None, status: str = "finished", **metrics: float) -> Path:
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"status": status, "seconds": 12.5}))
    if metrics:
        (path / "metrics.json").write_text(json.dumps(metrics))
    if overrides is not None:
        (path / ".hydra").mkdir()
        (path / ".hydra/overrides.yaml").write_text(yaml.safe_dump(overrides))
    return path
