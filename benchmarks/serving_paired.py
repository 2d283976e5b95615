"""Throughput of two checkouts of this repository on the same release, in turns.

    git worktree add ../before COMMIT
    python benchmarks/serving_paired.py --store releases --other ../before --rounds 6

Both servers run all the time; one after the other is asked POST /v1/retrieve (k = 100) by 32 connections without a
pause, so that a busy machine slows both. The requests have histories of known items, or name users whose histories are
stored. Prints requests a second and CPU time of the server per request of each turn, and the median ratios of this
checkout to the other one; the CPU time depends less on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from load_generator import generate
from serving_overload import cpu_seconds
from serving_process import ROOT, call, serving

from recsys.release.manifest import ITEMS
from recsys.release.store import ReleaseStore

CONNECTIONS, NUM_USERS, LENGTH = 32, 500, 50
START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from recsys.cli.main import run; run('serve', sys.argv[1:])"


def bodies(items: list[object]) -> dict[str, list[bytes]]:
    """Return requests by kind."""
    rng = np.random.default_rng(0)
    histories = [[{"item_id": items[row]} for row in rng.integers(len(items), size=LENGTH)] for _ in range(NUM_USERS)]
    return {
        "posted histories": [json.dumps({"history": one, "k": 100}).encode() for one in histories],
        "stored histories": [json.dumps({"user_id": user, "k": 100}).encode() for user in range(NUM_USERS)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--release", default="production")
    parser.add_argument("--other", type=Path, required=True, help="another checkout, with its own `src`")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4.0)
    given = parser.parse_args()
    release, _ = ReleaseStore(given.store).open(given.release)
    items = pq.read_table(release / ITEMS)["item_id"].to_pylist()
    options = [f"store={given.store.resolve()}", f"release={given.release}"]
    sources = {"this": ROOT / "src", "other": given.other.resolve() / "src"}
    with tempfile.TemporaryDirectory() as name:
        folders = {which: Path(name, which) for which in sources}
        for folder in folders.values():
            folder.mkdir()
        own = {which: [*options, f"events={folder}/events.sqlite"] for which, folder in folders.items()}
        scripts = {which: ("-c", START, str(source)) for which, source in sources.items()}
        with (
            serving(folders["this"], *own["this"], script=scripts["this"]) as (first, one),
            serving(folders["other"], *own["other"], script=scripts["other"]) as (second, two),
        ):
            addresses, pids = {"this": first, "other": second}, {"this": one.pid, "other": two.pid}
            rng = np.random.default_rng(1)
            for user in range(NUM_USERS):
                events = [
                    {"user_id": user, "item_id": items[row], "timestamp": 1_600_000_000 + at}
                    for at, row in enumerate(rng.integers(len(items), size=LENGTH))
                ]
                for address in addresses.values():
                    call(f"{address}/v1/events", events)
            for kind, content in bodies(items).items():
                ratios, cheaper = [], []
                for turn in range(-1, given.rounds):
                    rates, spent = {}, {}
                    # Each begins as often as the other one.
                    for which in sorted(addresses, reverse=bool(turn % 2)):
                        port = int(addresses[which].rpartition(":")[2])
                        before = cpu_seconds(pids[which])
                        load = asyncio.run(
                            generate("127.0.0.1", port, "/v1/retrieve", content, CONNECTIONS, given.seconds)
                        )
                        rates[which] = load.answered / load.seconds
                        spent[which] = 1000 * (cpu_seconds(pids[which]) - before) / load.answered
                        if load.errors:
                            raise SystemExit(f"{which}: {load.errors} answers were not 200")
                    if turn >= 0:
                        ratios.append(rates["this"] / rates["other"])
                        cheaper.append(spent["other"] / spent["this"])
                        of_both = (f"{which} {rates[which]:.0f}/s, {spent[which]:.3f} ms" for which in rates)
                        print(f"{kind}: {'; '.join(of_both)}", flush=True)
                by_rate, by_time = statistics.median(ratios), statistics.median(cheaper)
                print(f"{kind}: this / other {by_rate:.3f}, by CPU time {by_time:.3f}")


if __name__ == "__main__":
    main()
