"""Seconds and memory to read a year of item updates, as a starting host does.

    python benchmarks/serving_updates.py --releases 365 --items 1000

Each day a release gets new items with embeddings of 64 dimensions, and a tenth of them are taken down. The last line
is the time until the new items of the last release are known, which a host that serves it needs too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from recsys.serving.host.item_updates import ItemUpdates, _addition
from recsys.serving.host.journal import _line

DAYS, DIM = 365, 64


def memory() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--releases", type=int, default=DAYS)
    parser.add_argument("--items", type=int, default=1000, help="new items of a day")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "changes.journal"
        with path.open("wb") as file:
            for day in range(DAYS):
                ids = range(day * given.items, (day + 1) * given.items)
                rows = [{"item_id": item, "title": f"thing {item} of a kind", "category": "garden"} for item in ids]
                embeddings = rng.normal(size=(given.items, DIM)).astype(np.float32)
                file.write(_line(_addition(str(day * given.releases // DAYS), rows, embeddings)))
                file.write(_line({"take_down": [*ids[: given.items // 10]]}))
        before, begin = memory(), time.perf_counter()
        updates = ItemUpdates(path)
        print(f"{path.stat().st_size / 1e6:.0f} MB: {time.perf_counter() - begin:.2f} s, {memory() - before:.0f} MB")
        begin = time.perf_counter()
        _, _, new = updates.of(str((DAYS - 1) * given.releases // DAYS))
        print(f"{len(new)} new items of the last release: {time.perf_counter() - begin:.2f} s")


if __name__ == "__main__":
    main()
