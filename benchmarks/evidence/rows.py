"""Rows of the tables, read from the run folders of a plan: means over seeds, paired intervals, cost and commit."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from evidence.checking import is_checked
from evidence.plan import DataSet, Plan

from recsys.evaluation.significance import Comparison, Mean, compare_runs, means
from recsys.experiments.run_folder import METRICS, PER_USER, RunState, read_json, read_state

REPOSITORY = Path(__file__).parents[2]
TEST = "test/"


@dataclass(frozen=True)
class Row:
    """Runs of a row that are finished and checked.

    Attributes:
        values: values of each metric, one for each seed.
        per_user: file with the metrics of each test user, means over the seeds.
    """

    name: str
    title: str
    is_baseline: bool
    seeds: tuple[int, ...]
    values: Mapping[str, Sequence[float]]
    states: Sequence[RunState]
    per_user: Path

    def mean(self, metric: str) -> float | None:
        found = self.values.get(metric)
        return statistics.fmean(found) if found else None

    def compared(self, baseline: Row, metrics: Sequence[str]) -> dict[str, Comparison]:
        """Return the gain over a baseline by metric, by a paired bootstrap over users."""
        columns = [metric.removeprefix(TEST) for metric in metrics if metric.startswith(TEST)]
        return {TEST + c.metric: c for c in compare_runs(baseline.per_user, self.per_user, metrics=columns)}

    def interval(self, metric: str) -> Mean:
        """Return the mean of a metric of the test with its interval over users."""
        return means(self.per_user, [metric.removeprefix(TEST)])[0]


@dataclass(frozen=True)
class Measured:
    """Rows of a data set, and what is missing."""

    data: DataSet
    rows: tuple[Row, ...]
    missing: tuple[str, ...]

    def named(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)

    def best_baseline(self, metric: str) -> Row | None:
        baselines = [row for row in self.rows if row.is_baseline and row.mean(metric) is not None]
        return max(baselines, key=lambda row: row.mean(metric) or 0.0, default=None)


def read_rows(plan: Plan, data: DataSet, runs: Path) -> Measured:
    """Read the rows of a data set. A run without a passing check is left out."""
    rows, missing = [], []
    for name in (*data.variants, *plan.baselines):
        jobs = [job for job in plan.jobs(data=[data.name], rows=[name]) if job.row == name]
        done = [job for job in jobs if is_checked(job.folder(runs))]
        left = [job for job in jobs if job not in done]
        if left and left[0].seed is not None:
            missing.append(f"{name} (seeds {', '.join(str(job.seed) for job in left)})")
        elif left:
            missing.append(name)
        if not done:
            continue
        folders = [job.folder(runs) for job in done]
        content = [read_json(folder / METRICS) for folder in folders]
        metrics = dict.fromkeys([*plan.metrics, *(bar.metric for bar in data.bars)])
        values = {metric: [one[metric] for one in content if metric in one] for metric in metrics}
        title = plan.variants[name].title if name in plan.variants else name.replace("_", " ")
        seeds = tuple(job.seed for job in done if job.seed is not None)
        states = [read_state(folder) for folder in folders]
        per_user = mean_per_user([folder / PER_USER for folder in folders])
        rows.append(Row(name, title, name in plan.baselines, seeds, values, states, per_user))
    return Measured(data, tuple(rows), tuple(missing))


def mean_per_user(files: Sequence[Path]) -> Path:
    """Return a file with the means over seeds of the metrics of each user."""
    if len(files) == 1:
        return files[0]
    joined = pa.concat_tables([pq.read_table(file) for file in files])
    columns = [name for name in joined.column_names if name != "user_id"]
    grouped = joined.group_by("user_id").aggregate([(name, "mean") for name in columns])
    path = files[0].parents[1] / PER_USER
    pq.write_table(grouped.rename_columns({f"{name}_mean": name for name in columns}), path)
    return path


@cache
def described_commit(commit: str | None) -> str:
    """Return a commit in short, and how many commits of the code came after it."""
    if commit is None:
        return "unknown"
    changed = commit.endswith("+")
    short = commit[:7] + (", uncommitted changes" if changed else "")
    command = ["git", "-C", str(REPOSITORY), "rev-list", "--count", f"{commit.rstrip('+')}..HEAD", "--", "src", "conf"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        return f"{short}, not in this history"
    later = int(found.stdout)
    return f"{short}, older by {later} commit{'s' * (later != 1)}" if later else short
