"""`python -m recsys.sweep`, the same as `recsys sweep`."""

import sys

from recsys.cli.main import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
