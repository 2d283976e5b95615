"""Run one retraining cycle, or one after the other: `recsys retrain` (recsys/cli/retrain.py)."""

import sys

from recsys.cli.main import run

if __name__ == "__main__":
    run("retrain", sys.argv[1:])
