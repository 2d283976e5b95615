"""Tune every baseline on validation, fit it again on train + val, and measure it on test as a model is measured.

    recsys baselines data=parquet data.root=DIR split=leave_last_out hydra.run.dir=OUT
    recsys baselines ... generators=[popularity,ease] evaluation.metric=val/recall@100
    recsys baselines ... against=RUN            # and what a run of train.py gains over each of them

`OUT/<generator>/` holds what a run folder holds: config.yaml, metrics.json, per_user.parquet, run.json. A killed
command that is started again goes on where it was. `conf/baselines.yaml` says what is tried.
"""

from omegaconf import DictConfig

from recsys.cli.entry import entry, output_dir


def main(config: DictConfig) -> None:
    """Measure the baselines, and compare a run with them."""
    from pathlib import Path

    from recsys.core.errors import UserError
    from recsys.experiments.baseline_runs import measure_baselines
    from recsys.experiments.baseline_tables import print_baselines, print_gains

    path = Path(output_dir())
    runs, failed = measure_baselines(config, path)
    if runs:
        print_baselines(runs, config.evaluation.metric)
    if runs and config.against is not None:
        print_gains(Path(config.against), runs)
    if failed:
        raise UserError("; ".join(f"{name}: {error}" for name, error in failed.items()))
    print(path)


if __name__ == "__main__":
    entry("baselines", main)
