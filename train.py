"""Fit one variant and leave a run folder: `recsys train` (recsys/cli/train.py)."""

import sys

from recsys.cli.main import run

if __name__ == "__main__":
    run("train", sys.argv[1:])
