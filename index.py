"""Publish a run as a release: `recsys index` (recsys/cli/index.py)."""

import sys

from recsys.cli.main import run

if __name__ == "__main__":
    run("index", sys.argv[1:])
