"""Rows of the tables, read from the run folders of a plan: means over seeds, paired intervals, cost and commit."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from evidence.checking import is_checked
from evidence.measured import Difference, Figure, Row, Table, Test
from msgspec.structs import replace

from recsys.evaluation.significance import compare_runs, holm, means
from recsys.experiments.run_folder import METRICS, PER_USER, read_json, read_state

TEST = "test/"
# Digits of new figures in the file, two more than the tables show.
DIGITS = 6


def measure(kept: Table, runs: Path) -> Table:
    """Return the kept rows, with those replaced whose runs are in folders.

    A run without a passing check is left out. If some runs of a row are there, they replace the kept row as a whole,
    also if it had more seeds, so that a row never mixes runs that are there with runs that nobody can check any more.
    A comparison needs the files `per_user.parquet` of both rows. If that of the baseline is gone, a row that is equal
    to the kept one keeps its comparison.
    """
    plan, data = kept.plan, kept.data
    rows = dict(kept.rows)
    users: dict[str, Path] = {}
    for name in (*data.variants, *plan.baselines):
        jobs = [job for job in plan.jobs(data=[data.name], rows=[name]) if job.row == name]
        done = [job for job in jobs if is_checked(job.folder(runs))]
        if done:
            folders = [job.folder(runs) for job in done]
            users[name] = mean_per_user([folder / PER_USER for folder in folders])
            metrics = dict.fromkeys([*plan.metrics, *(bar.metric for bar in data.bars)])
            rows[name] = read_row(folders, users[name], metrics=list(metrics), shown=plan.metrics[0])
            rows[name] = replace(rows[name], seeds=tuple(job.seed for job in done if job.seed is not None))
    table = Table(plan, data, rows)
    compared = {name: compare(name, table, users=users, kept=kept.rows.get(name)) for name in users}
    return Table(plan, data, rows | compared)


def read_row(folders: Sequence[Path], users: Path, *, metrics: Sequence[str], shown: str) -> Row:
    """Return the row of some runs without comparisons.

    Args:
        folders: a run folder for each seed.
        users: metrics of each user, means over the seeds.
        metrics: metrics that are kept.
        shown: metric whose interval over users is kept.
    """
    content, states = [read_json(folder / METRICS) for folder in folders], [read_state(folder) for folder in folders]
    figures = {}
    for metric in metrics:
        if values := [one[metric] for one in content if metric in one]:
            deviation = round(statistics.stdev(values), DIGITS) if len(values) > 1 else None
            figures[metric] = Figure(round(statistics.fmean(values), DIGITS), deviation)
    if shown in figures and shown.startswith(TEST):
        [one] = means(users, [shown.removeprefix(TEST)])
        figures[shown] = replace(figures[shown], low=round(one.low, DIGITS), high=round(one.high, DIGITS))
    return Row(
        commits=tuple(dict.fromkeys(state.git_commit for state in states)),
        seconds=round(statistics.fmean(state.seconds for state in states), 1),
        memory_gib=round(max(state.peak_memory_bytes or 0 for state in states) / 2**30, 2),
        figures=figures,
        parameters=states[0].parameters.get("total"),
        settings=states[0].settings,
    )


def compare(name: str, table: Table, *, users: Mapping[str, Path], kept: Row | None) -> Row:
    """Return a row with its comparisons by a paired bootstrap over users."""
    row, data = table.rows[name], table.data
    metrics = [metric for metric in table.plan.metrics if metric.startswith(TEST) and metric in row.figures]
    found = gains(name, data.baseline, metrics, table=table, users=users) if name != data.baseline else []
    differences = [difference for difference, _ in found]
    best, bars = [], []
    if name not in table.baselines:
        for metric in metrics:
            baseline = table.best_baseline(metric)
            best += [test for _, test in gains(name, baseline, [metric], table=table, users=users)]
        values = {test.metric: test.p_value for test in best}
        family = [metric for metric in metrics if table.best_baseline(metric)]
        # Holm needs all p-values. Without those whose runs are gone, each is corrected for the whole family.
        complete = len(best) == len(family)
        corrected = holm(values) if complete else {name: min(1.0, p * len(family)) for name, p in values.items()}
        best = [replace(test, p_value=rounded(corrected[test.metric])) for test in best]
        for bar in data.bars:
            if bar.row == name and bar.above:
                bars += [test for _, test in gains(name, bar.above, [bar.metric], table=table, users=users)]
        bars = [replace(test, p_value=rounded(test.p_value)) for test in bars]
    if kept is not None and replace(kept, differences=(), best=(), bars=()) == row:
        differences += [one for one in kept.differences if one.metric not in {new.metric for new in differences}]
        best += [one for one in kept.best if one.metric not in {new.metric for new in best}]
        done = {(new.metric, new.baseline) for new in bars}
        bars += [one for one in kept.bars if (one.metric, one.baseline) not in done]
    return replace(row, differences=tuple(differences), best=tuple(best), bars=tuple(bars))


def gains(
    name: str, baseline: str | None, metrics: Sequence[str], *, table: Table, users: Mapping[str, Path]
) -> list[tuple[Difference, Test]]:
    """Compare a row with a baseline; return nothing if the runs of the baseline are gone."""
    if baseline is None or baseline not in users:
        return []
    columns = [metric.removeprefix(TEST) for metric in metrics if metric in table.rows[baseline].figures]
    found = []
    for one in compare_runs(users[baseline], users[name], metrics=columns):
        metric = TEST + one.metric
        mean = table.rows[baseline].figures[metric].mean
        difference, low, high = (round(value, DIGITS) for value in (one.difference, one.low, one.high))
        without_zero = one.low > 0 or one.high < 0
        found.append(
            (
                Difference(metric, baseline, mean, difference, low, high, without_zero),
                Test(metric, baseline, mean, difference, one.p_value),
            )
        )
    return found


def rounded(p_value: float) -> float:
    return float(f"{p_value:.3g}")


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
