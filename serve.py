"""Answer requests over HTTP from one release at a time: `recsys serve` (recsys/cli/serve.py)."""

import sys

from recsys.cli.main import run

if __name__ == "__main__":
    run("serve", sys.argv[1:])
