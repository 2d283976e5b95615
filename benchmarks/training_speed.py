"""Training speed against RePlay's and RecTools' SASRec: targets (real next items, no padding) per second.

    RECSYS_DATA=DIR RECSYS_PEER_REPLAY=.../bin/python RECSYS_PEER_RECTOOLS=.../bin/python \
        python benchmarks/training_speed.py

One model on all sides (d = 64, 2 blocks, 2 heads, dropout 0.2, ReLU in the feed-forward part), batches of 128
histories, the same training histories, two threads, the same allocator setting. Sides take turns (A B A B), each in its
own process; a rate is the median over all timed steps. `loop` calls the training step bare, `fit` runs it under
Lightning's trainer. By default a user's first event is a target as well, as in training; the peers cannot predict it,
and `--same-targets` leaves it out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

HERE = Path(__file__).parent
PEERS = {
    "replay": ("RECSYS_PEER_REPLAY", "replay_sasrec.py"),
    "rectools": ("RECSYS_PEER_RECTOOLS", "rectools_sasrec.py"),
}
# data set, loss, window, bars: at least so many times the peer's rate
CASES = {
    "beauty_full": ("amazon-beauty", "full", 50, {"replay": 10.0, "rectools": 20.0}),
    "beauty_sampled": ("amazon-beauty", "sampled", 50, {"replay": 8.0}),
    "ml1m_full": ("movielens-1m-positives", "full", 50, {"replay": 1.5}),
    "ml1m_sampled": ("movielens-1m-positives", "sampled", 50, {"replay": 1.5}),
    "ml1m_full_200": ("movielens-1m-positives", "full", 200, {"replay": 1.5}),
    "ml1m_sampled_200": ("movielens-1m-positives", "sampled", 200, {"replay": 1.5}),
}


def export(source: Path, path: Path) -> None:
    """Training histories: all but the last two events of a user (Beauty), or the first 80% of events by time."""
    table = pq.read_table(source / "interactions.parquet")
    user, item, time = (table[name].to_numpy() for name in ("user_id", "item_id", "timestamp"))
    order = np.lexsort((time, user))
    user, item, time = user[order], item[order], time[order]
    if source.name == "amazon-beauty":
        from_end = np.r_[np.flatnonzero(np.diff(user)) + 1, len(user)]
        keep = np.ones(len(user), bool)
        keep[from_end - 1] = keep[from_end - 2] = False
    else:
        keep = time < np.quantile(time, 0.8)
    user, item, time = user[keep], item[keep], time[keep]
    ids, inverse, counts = np.unique(item, return_inverse=True, return_counts=True)
    rank = np.empty(len(ids), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(1, len(ids) + 1)
    starts = np.r_[0, np.flatnonzero(np.diff(user)) + 1, len(user)]
    np.savez(path, item_idx=rank[inverse], time=time, offsets=starts, num_items=len(ids))


def run(side: str, data: Path, loss: str, mode: str, window: int, given: argparse.Namespace) -> list[float]:
    """Rates of one process."""
    if side == "recsys":
        command = [sys.executable, str(HERE / "training_step.py")]
    else:
        variable, script = PEERS[side]
        command = [os.environ[variable], str(HERE / "peers" / script)]
    command += ["--data", str(data), "--loss", loss, "--mode", mode, "--window", str(window)]
    command += ["--seconds", str(given.seconds), "--threads", str(given.threads)]
    command += ["--same-targets"] * given.same_targets
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "1", "OMP_NUM_THREADS": str(given.threads)}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{side}: {' '.join(command)} failed\n{finished.stderr}")
    rates: list[float] = json.loads(finished.stdout.splitlines()[-1])["targets_per_second"]
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--modes", nargs="+", choices=("loop", "fit"), default=["loop", "fit"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--same-targets", action="store_true", help="leave out first events, which peers cannot predict"
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="of timed steps, for each process")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[p for p in PEERS if PEERS[p][0] in os.environ])
    given = parser.parse_args()
    for peer in PEERS:
        if peer not in given.peers:
            print(f"{peer}: skipped, {PEERS[peer][0]} does not name the Python of an environment that has it")
    root = Path(os.environ["RECSYS_DATA"])
    with tempfile.TemporaryDirectory() as folder:
        for name in given.cases:
            source, loss, window, bars = CASES[name]
            data = Path(folder) / f"{source}.npz"
            if not data.exists():
                export(root / source, data)
            for mode in given.modes:
                sides = ["recsys", *(peer for peer in bars if peer in given.peers)]
                rates: dict[str, list[float]] = {side: [] for side in sides}
                for _ in range(given.rounds):
                    for side in sides:
                        rates[side] += run(side, data, loss, mode, window, given)
                ours = statistics.median(rates["recsys"])
                print(f"{name:18s} {mode:5s} recsys {ours:9,.0f} targets/s ({len(rates['recsys'])} steps)", flush=True)
                for peer in sides[1:]:
                    theirs = statistics.median(rates[peer])
                    print(
                        f"{name:18s} {mode:5s} {peer} {theirs:9,.0f} targets/s ({len(rates[peer])} steps)"
                        f"  ratio {ours / theirs:.2f}, bar {bars[peer]:g}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
