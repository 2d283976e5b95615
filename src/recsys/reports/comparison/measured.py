"""Runs for a comparison: settings, metrics, learning curves and cost."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.core.errors import UserError, nearest
from recsys.core.stored_config import load_plain
from recsys.experiments.run_folder import RunState
from recsys.experiments.run_logs import Curve, curves_of, read_logs
from recsys.experiments.run_names import names_of
from recsys.experiments.run_table import RunRow
from recsys.experiments.run_table import read_runs as read_rows

log = logging.getLogger("recsys")

PER_USER = "per_user.parquet"


@dataclass(frozen=True)
class MeasuredRun:
    """A finished run, or a baseline that was evaluated in the same way.

    Attributes:
        row: name, overrides, metrics and state.
        config: content of `config.yaml`; empty if there is none, as for a baseline.
        per_user: path of the file with the metrics of each test user.
        columns: metrics in that file.
        curves: values logged during training, by metric.
    """

    row: RunRow
    config: Mapping[str, Any]
    per_user: Path
    columns: frozenset[str]
    curves: Mapping[str, Curve]

    @property
    def name(self) -> str:
        """Name of the run, unique within the comparison."""
        return self.row.name

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics such as `test/recall@10`."""
        return self.row.metrics

    @property
    def state(self) -> RunState:
        """Content of `run.json`."""
        return self.row.state

    @property
    def test(self) -> dict[str, str]:
        """Settings besides the model that metrics per user depend on, as far as the run records them."""
        settings = {
            "dataset_fingerprint": self.state.dataset_fingerprint,
            "split": self.config.get("split"),
            "exclude_seen": self.config.get("exclude_seen", self.state.exclude_seen),
        }
        return {name: str(value) for name, value in settings.items() if value is not None}


def read_folder(path: Path) -> list[MeasuredRun]:
    """Read the run in a folder, or all finished runs below it, such as those of a sweep.

    Raises:
        UserError: If there is no run, or a file is missing or damaged.
    """
    rows = read_rows(path)
    if not rows and (path / "metrics.json").exists():
        rows = [RunRow(path, path.name, {}, RunState(), json.loads((path / "metrics.json").read_text()))]
    if not rows:
        raise UserError(f"{path}: no run (run.json) in it or below it; expected a run folder, or a folder of runs")
    unfinished = [row for row in rows if not (row.path / PER_USER).exists()]
    if len(unfinished) == len(rows):
        raise UserError(
            f"{unfinished[0].path}: no {PER_USER}; expected a finished run, found status '{unfinished[0].state.status}'"
        )
    for row in unfinished:
        log.warning("%s is left out: it has no %s (status '%s')", row.path, PER_USER, row.state.status)
    return [_measured(row) for row in rows if row not in unfinished]


def unique_names(runs: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """Return the runs with distinct names; runs of equal names are prefixed by the folders above them.

    Runs whose folders are numbers, as in a multirun or a sweep, or times are named by the overrides that differ.

    Raises:
        UserError: If a run is given twice.
    """
    paths = [run.row.path.resolve() for run in runs]
    if repeated := [path for number, path in enumerate(paths) if path in paths[:number]]:
        raise UserError(f"{repeated[0]}: given twice; expected different runs")
    names = [run.name for run in runs]
    depth = {path: len(Path(name).parts) for path, name in zip(paths, names, strict=True)}
    while doubled := {name for name in names if names.count(name) > 1}:
        for number, (path, name) in enumerate(zip(paths, names, strict=True)):
            if name in doubled:
                depth[path] += 1
                names[number] = Path(*path.parts[-depth[path] :]).as_posix()
    rows = [(name, run.row.path, run.row.overrides) for run, name in zip(runs, names, strict=True)]
    return [
        dataclasses.replace(run, row=dataclasses.replace(run.row, name=name))
        for run, name in zip(runs, names_of(rows), strict=True)
    ]


def choose(runs: Sequence[MeasuredRun], name: str) -> MeasuredRun:
    """Return the run with the given name or folder."""
    for run in runs:
        if name in (run.name, run.row.path.name) or Path(name).resolve() == run.row.path.resolve():
            return run
    raise UserError(f"baseline: no run '{name}'{nearest(name, (run.name for run in runs))}")


def require_same_test(runs: Sequence[MeasuredRun]) -> None:
    """Refuse runs whose users cannot be paired.

    Raises:
        UserError: If two runs were tested on different data, with another split or other rules; the message names them.
    """
    for key in ("dataset_fingerprint", "split", "exclude_seen"):
        values = {run.name: run.test[key] for run in runs if key in run.test}
        for name, value in values.items():
            first, expected = next(iter(values.items()))
            if value != expected:
                one, other = (run for run in runs if run.name in (first, name))
                raise UserError(
                    f"not the same test: {name} has {key} {value}, {first} has {expected}{_differing(one, other)}; "
                    "expected runs of the same data, split and exclude_seen"
                )


def measured(row: RunRow, config: Mapping[str, Any], *, per_user: Path, curves: Mapping[str, Curve]) -> MeasuredRun:
    """Return a run together with the columns of its file per user.

    Raises:
        UserError: If the file cannot be read.
    """
    try:
        columns = frozenset(pq.read_schema(per_user).names) - {"user_id"}
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{per_user}: not a readable Parquet file ({error})") from error
    return MeasuredRun(row, config, per_user, columns, curves)


def _measured(row: RunRow) -> MeasuredRun:
    folders = [row.path]
    if row.state.variant is not None:
        # A run that was selected from variants has its training logs in the variant's folder.
        folders.insert(0, row.path / "variants" / row.state.variant)
    config = row.path / "config.yaml"
    if row.state.generator is not None:
        # The settings of a baseline are the result of tuning, not overrides.
        chosen = {f"generator.{name}": str(value) for name, value in row.state.settings.items()}
        row = dataclasses.replace(row, overrides={"generator": row.state.generator} | chosen)
    return measured(
        row,
        load_plain(config) if config.exists() else {},
        per_user=row.path / PER_USER,
        curves=curves_of(row for folder in folders for row in read_logs(folder)),
    )


def _differing(one: MeasuredRun, other: MeasuredRun) -> str:
    """Return the settings of data and split in which two runs differ, as text."""
    if not one.config or not other.config:
        return ""
    mine, theirs = (dict(flat({key: run.config[key] for key in ("data", "split")})) for run in (one, other))
    names = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
    shown = ", ".join(f"{name} {mine.get(name)} and {theirs.get(name)}" for name in names[:5])
    return f" (settings that differ: {shown})" if shown else " (their settings are the same: the source has changed)"


def flat(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield dotted names and values of nested settings."""
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
