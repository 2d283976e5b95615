"""`python -m recsys.embed_items`, the same as `recsys embed-items`."""

import sys

from recsys.cli.main import main

if __name__ == "__main__":
    main(["embed-items", *sys.argv[1:]])
