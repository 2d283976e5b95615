"""`python -m recsys.gates`, the same as `recsys gates`."""

import sys

from recsys.cli.main import main

if __name__ == "__main__":
    main(["gates", *sys.argv[1:]])
