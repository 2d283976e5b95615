"""Fit one variant: compose, prepare, build, fit, test, leave a run folder.

    python train.py                                       simulated pins, no download
    python train.py +experiment=beauty data.root=DIR      a named variant
    python train.py data=parquet data.root=DIR split=leave_last_out loss.logq=off hydra.run.dir=RUN

The last line is the run folder.
"""

from pathlib import Path

from omegaconf import DictConfig

from recsys.cli import entry, output_dir
from recsys.distributed import is_first
from recsys.report import print_run
from recsys.training import train


def main(config: DictConfig) -> None:
    """Train one variant and say how it did."""
    run = train(config, Path(output_dir()))
    if is_first():
        print_run(run)
        print(run.path)


if __name__ == "__main__":
    entry("train", main)
