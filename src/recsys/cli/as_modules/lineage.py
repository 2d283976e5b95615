"""`python -m recsys.lineage`, the same as `recsys lineage`."""

import sys

from recsys.cli.main import main

if __name__ == "__main__":
    main(["lineage", *sys.argv[1:]])
