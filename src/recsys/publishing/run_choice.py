"""The run that becomes a release: a named one, or the best of a folder of runs."""

from __future__ import annotations

import logging
from pathlib import Path

import yaml

from recsys.core.errors import UserError
from recsys.experiments.run_folder import DONE, RunStatus
from recsys.experiments.run_table import RunRow, best_first, is_maximized, read_runs
from recsys.experiments.train import finish

log = logging.getLogger("recsys")


def choose_run(run: str | None, sweep: str | None, *, metric: str) -> Path:
    """Return the folder `run`, or the best run of the folder `sweep`, which is finished if it was not tested yet.

    Args:
        run: folder of a run; None for the best of a sweep.
        sweep: folder of runs; None for one run.
        metric: validation metric that chooses the best run.

    Raises:
        UserError: If not exactly one of both is given, or the sweep has no run with the metric.
    """
    if (run is None) == (sweep is None):
        raise UserError("expected one of run=RUN (a run folder) and sweep=DIR (a folder of run folders)")
    if run is not None:
        return Path(run)
    best = best_run(str(sweep), metric)
    if best.state.status == RunStatus.SELECTED:
        log.info("%s was selected on validation; it is tested now", best.path)
        finish(best.path)
    return best.path


def best_run(sweep: str | Path, metric: str) -> RunRow:
    """Return the best finished or selected run below a folder; of equal runs the first by path.

    Whether more is better follows from `sweep.yaml`, or from the name of the metric if there is no such file.

    Args:
        sweep: folder of runs.
        metric: validation metric.

    Raises:
        UserError: If the metric is not of validation, there is no finished run, or none has the metric.
    """
    if not metric.startswith("val/"):
        raise UserError(
            f"metric: found '{metric}', expected one of validation such as val/recall@100, because a run "
            f"that is chosen by the test part cannot be tested on it"
        )
    # The folder may contain baselines that the runs are compared with.
    rows = [r for r in read_runs(sweep) if r.state.status in DONE and r.state.generator is None]
    if not rows:
        raise UserError(f"sweep: {sweep} holds no finished run")
    ranked = best_first(rows, metric, maximize=_maximize(Path(sweep), metric))
    value = ranked[0].value(metric)
    tied = [row.name for row in ranked[1:] if row.value(metric) == value]
    log.info(
        "%s: best of %d runs, %s %.4f%s", ranked[0].path, len(rows), metric, value,
        f"; as good: {', '.join(tied)}" if tied else "",
    )  # fmt: skip
    return ranked[0]


def _maximize(sweep: Path, metric: str) -> bool:
    file = sweep / "sweep.yaml"
    stored = (yaml.safe_load(file.read_text()) if file.exists() else {}).get("metric", {})
    return is_maximized(metric) if stored.get("name") != metric else bool(stored.get("goal") == "maximize")
