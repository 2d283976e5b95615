"""`python -m recsys.releases`, the same as `recsys releases`."""

import sys

from recsys.cli.main import main

if __name__ == "__main__":
    main(["releases", *sys.argv[1:]])
