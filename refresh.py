"""Refresh a served release from newer data: `recsys refresh` (recsys/cli/refresh.py)."""

import sys

from recsys.cli.main import run

if __name__ == "__main__":
    run("refresh", sys.argv[1:])
