"""`python -m recsys.exposures`, the same as `recsys exposures`."""

import sys

from recsys.cli.main import main

if __name__ == "__main__":
    main(["exposures", *sys.argv[1:]])
