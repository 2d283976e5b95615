"""Run folders that are written out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

CONFIG = {"exclude_seen": True, "split": {"name": "temporal"}, "data": {"root": "here"}, "model": {"dim": 8}}


def write(
    path: Path,
    columns: Mapping[str, Sequence[float | None]],
    state: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = CONFIG,
    overrides: Sequence[str] = (),
    **metrics: float,
) -> Path:
    """A finished run of test users 0, 1, ...

    Args:
        path: of the folder.
        columns: metrics of each user; their means are test metrics.
        state: content of `run.json` beside the usual; without a config the folder is that of a baseline.
        config: content of `config.yaml`.
        overrides: of the command.
        metrics: further test metrics, `@` written as `_at_`.
    """
    path.mkdir(parents=True)
    num_users = len(next(iter(columns.values())))
    table = {"user_id": list(range(num_users))}
    table |= {name: pa.array(values, pa.float32()) for name, values in columns.items()}
    pq.write_table(pa.table(table), path / "per_user.parquet")
    means = {}
    for name, values in columns.items():
        there = [value for value in values if value is not None]
        if there:
            means[f"test/{name}"] = sum(there) / len(there)
    means |= {f"test/{name.replace('_at_', '@')}": value for name, value in metrics.items()}
    (path / "metrics.json").write_text(json.dumps(means))
    usual = {"status": "finished", "dataset_fingerprint": "f00"}
    (path / "run.json").write_text(json.dumps(usual | dict(state or {})))
    if config is not None:
        (path / "config.yaml").write_text(yaml.safe_dump(dict(config)))
    (path / ".hydra").mkdir()
    (path / ".hydra/overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    return path


def write_log(path: Path, start: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Return the log of one start of the run."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in rows)]
    folder = path / "logs" / str(start)
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
