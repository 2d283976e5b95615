"""`python -m recsys.baselines`, the same as `recsys baselines`."""

import runpy
import sys

if __name__ == "__main__":
    # The command line lies above this room, so it is started, not imported.
    sys.argv.insert(1, "baselines")
    runpy.run_module("recsys.cli", run_name="__main__")
