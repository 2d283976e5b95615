"""Train one model, or several variants of which the best on validation becomes the run.

    recsys train                                            simulated pins, no download
    recsys train +experiment=beauty data.root=DIR           a named experiment
    recsys train data=parquet data.root=DIR split=leave_last_out loss.logq=off hydra.run.dir=RUN
    recsys train +experiment=recommended data.root=DIR      several variants, and a blend of them if it is better

The last line of the output is the run folder. If the command was killed, run it again: it continues where it stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Train, and print a table of metrics and the run folder."""
    from pathlib import Path

    from recsys.cli.entry import output_dir
    from recsys.core.distributed import is_first
    from recsys.experiments.compose import variants_of
    from recsys.experiments.processes import join
    from recsys.experiments.run_summary import print_run
    from recsys.experiments.train import train
    from recsys.experiments.variants import train_best

    path = Path(output_dir())
    join(config, path)
    variants = variants_of(config)
    run = train_best(variants, path, blend=config.blend) if variants else train(config, path)
    if is_first():
        print_run(run, selection=config.evaluation.metric)
        print(run.path)
