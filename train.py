"""Fit one variant: compose, prepare, build, fit, test, leave a run folder.

    python train.py                                       simulated pins, no download
    python train.py +experiment=beauty data.root=DIR      a named variant
    python train.py data=parquet data.root=DIR split=leave_last_out loss.logq=off hydra.run.dir=RUN
    python train.py +experiment=recommended data.root=DIR several variants, the best on validation becomes the run

The last line is the run folder.
"""

from pathlib import Path

from omegaconf import DictConfig

from recsys.cli.entry import entry, output_dir
from recsys.core.distributed import is_first
from recsys.experiments.compose import variants_of
from recsys.experiments.run_summary import print_run
from recsys.experiments.train import train
from recsys.experiments.variants import train_best


def main(config: DictConfig) -> None:
    """Train one variant, or the best of several, and say how it did."""
    path = Path(output_dir())
    variants = variants_of(config)
    run = train_best(variants, path, config.blend) if variants else train(config, path)
    if is_first():
        print_run(run)
        print(run.path)


if __name__ == "__main__":
    entry("train", main)
