"""`python -m recsys.generators`, the same as `recsys generators`."""

import sys

from recsys.cli.main import main

if __name__ == "__main__":
    main(["generators", *sys.argv[1:]])
