"""`python -m recsys.rollout`, the same as `recsys rollout`."""

import sys

from recsys.cli.main import main

if __name__ == "__main__":
    main(["rollout", *sys.argv[1:]])
