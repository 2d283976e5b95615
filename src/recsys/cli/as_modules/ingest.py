"""`python -m recsys.ingest`, the same as `recsys ingest`."""

import sys

from recsys.cli.main import main

if __name__ == "__main__":
    main(["ingest", *sys.argv[1:]])
