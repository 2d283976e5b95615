"""Write ranked items for many users to a Parquet file: `recsys recommend` (recsys/cli/recommend.py)."""

import sys

from recsys.cli.main import run

if __name__ == "__main__":
    run("recommend", sys.argv[1:])
