"""Duration of a daily refresh of a large release: ids and features, 64 dimensions, gates included.

    python benchmarks/refresh_speed.py [--items 1000000] [--events 3000000]

Makes data, a release of towers with random weights, and one more day of events with 1% new items, and refreshes the
release with it. Prints the duration of each step. On a busy machine the time of the CPUs, divided by their number,
says more. Bar: 3 minutes for 1 million items on 2 cores.
"""

import argparse
import json
import logging
import os
import resource
import tempfile
import time
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from recsys.experiments.assembly import build_towers, instantiate, open_data
from recsys.experiments.conf_files import CONF
from recsys.experiments.trained_run import load_run
from recsys.operations.refresh import run_refresh
from recsys.publishing.promote import promote
from recsys.release.store import ReleaseStore

DAY, DAYS = 86_400, 60
# Gates on accuracy and volume say nothing about random weights and events.
LEFT_OUT = ("not_worse", "absolute", "overlap", "coverage", "popularity", "new_items", "volume", "activity", "unseen",
            "items", "gaps", "duplicates", "clock", "embeddings")  # fmt: skip


def configuration(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides=[*overrides])


def write_tables(root: Path, num_items: int, num_events: int, *, days: int) -> Path:
    """Write events of `days` days. The items of the last day are new."""
    rng = np.random.default_rng(0)
    root.mkdir()
    time_ = np.sort(rng.integers(0, DAYS * DAY, num_events))
    items = (num_items * rng.random(num_events) ** 2).astype(int)
    users = rng.integers(0, num_events // 15, num_events)
    more = num_events // DAYS if days > DAYS else 0
    time_ = np.concatenate([time_, DAYS * DAY + np.sort(rng.integers(0, DAY, more))])
    items = np.concatenate([items, (num_items * 1.01 * rng.random(more) ** 2).astype(int)])
    users = np.concatenate([users, rng.integers(0, num_events // 15, more)])
    pq.write_table(pa.table({"user_id": users, "item_id": items, "timestamp": time_}), root / "interactions.parquet")
    count = num_items + (num_items // 100 if more else 0)
    rng = np.random.default_rng(1)
    tags = pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 2000, 3 * count)), 3)
    table = {"item_id": np.arange(count), "category": rng.integers(0, 1000, count), "tags": tags,
             "price": rng.exponential(20.0, count)}  # fmt: skip
    pq.write_table(pa.table(table), root / "items.parquet")
    return root


def write_run(path: Path, root: Path, cache: Path) -> Path:
    """Write the folder of a finished run whose towers have random weights."""
    shift = "model.prior_shift={weight: 0.5, half_life_days: 4, power: 1.0}"
    given = [f"data.root={root}", f"data.cache={cache}", "split=temporal", "model.dim=64", "user_tower=mean", shift]
    config = configuration("train", "data=parquet", *given)
    dataset = open_data(config)
    model = build_towers(config, dataset)
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True).replace("???", "null"))
    state = {"status": "finished", "dataset_fingerprint": dataset.meta.fingerprint, "git_commit": None}
    (path / "run.json").write_text(json.dumps(state))
    (path / "metrics.json").write_text("{}")
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": weights, "global_step": 0}, path / "checkpoints/best.ckpt")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=3_000_000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.basicConfig(level=logging.WARNING, format="%(relativeCreated)7d ms  %(message)s")
    logging.getLogger("recsys").setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = write_tables(folder / "first", args.items, args.events, days=DAYS)
        newer = write_tables(folder / "newer", args.items, args.events, days=DAYS + 1)
        run = load_run(write_run(folder / "run", first, folder / "cache"))
        store = ReleaseStore(folder / "store")
        index = instantiate(configuration("index", "run=none").index)
        version = promote(run, index, store=store, model="two_tower").version
        store.set_alias("production", version, why="benchmark")
        del run
        begin, begin_cpu = time.perf_counter(), time.process_time()
        words = [f"data.root={newer}", f"store={store.root}", f"folder={folder / 'refreshes'}", "max_users=1000"]
        config = configuration("refresh", "release=production", *words, *(f"~gates.{gate}" for gate in LEFT_OUT))
        result = run_refresh(config)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
        print(
            f"{args.items:,} items: {result.outcome} in {seconds:.1f} s, {cpu:.1f} s of CPU, peak memory of the "
            f"process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB (bar: 180 s for 1,000,000)"
        )
        if result.verdict is not None:
            print(result.verdict.summary())


if __name__ == "__main__":
    main()
