"""Tune every baseline on validation, refit it on train + val, and measure it on test in the same way as a model.

    recsys baselines data=parquet data.root=DIR split=leave_last_out hydra.run.dir=OUT
    recsys baselines ... generators=[popularity,ease] evaluation.metric=val/recall@100
    recsys baselines ... against=RUN            compare a run of `recsys train` with each of them

`OUT/<generator>/` is a run folder: config.yaml, metrics.json, per_user.parquet, run.json. If the command was
killed, run it again: it continues where it stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Measure the baselines, and compare a run with them if `against` names one."""
    from pathlib import Path

    from recsys.cli.entry import output_dir
    from recsys.core.errors import UserError
    from recsys.experiments.baseline_runs import measure_baselines
    from recsys.experiments.baseline_tables import print_baselines

    path = Path(output_dir())
    runs, failed = measure_baselines(config, path)
    if runs:
        print_baselines(runs, config.evaluation.metric)
    if runs and config.against is not None:
        _print_gains(Path(config.against), [run.path for run in runs.values()])
    if failed:
        raise UserError("; ".join(f"{name}: {error}" for name, error in failed.items()))
    print(path)


def _print_gains(against: Path, baselines: list[Path]) -> None:
    """Compare each baseline with a run. Settings of features may differ, so users are paired by `user_id`."""
    import logging

    from recsys.core.screen import screen
    from recsys.reports.comparison.comparison_report import ComparisonReport
    from recsys.reports.comparison.measured import read_folder, unique_names

    runs = unique_names([run for path in (against, *baselines) for run in read_folder(path)])
    if len(prepared := {str(run.state.dataset_fingerprint) for run in runs}) > 1:
        logging.getLogger("recsys").warning("%s: prepared as data %s", against, " and ".join(sorted(prepared)))
    ComparisonReport(runs, baseline=str(against)).print(screen())
