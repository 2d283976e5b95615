"""`python -m recsys.forget`, the same as `recsys forget`."""

import sys

from recsys.cli.main import main

if __name__ == "__main__":
    main(["forget", *sys.argv[1:]])
