"""Cost of an epoch as the catalogue grows and the events stay: sampled loss, row-wise updates.

    python benchmarks/catalogue_size.py

Prints the cost of a training step for each number of items, relative to the smallest. Bar: 1.5 x from 10 thousand items
to 1 million. Steps of all sizes are taken in turns, so that noise of the machine meets all of them.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from recsys.experiments.assembly import build_data, build_module, build_towers, open_data
from recsys.experiments.conf_files import CONF


def write_events(root: Path, num_items: int, num_events: int) -> None:
    """Write events of which every item has one; the rest is drawn by popularity."""
    root.mkdir()
    rng = np.random.default_rng(0)
    items = np.concatenate([np.arange(num_items), (num_items * rng.random(num_events - num_items) ** 3).astype(int)])
    users = np.sort(rng.integers(0, num_events // 15, num_events))
    table = {"user_id": users, "item_id": rng.permutation(items), "timestamp": np.arange(num_events)}
    pq.write_table(pa.table(table), root / "interactions.parquet")


def composed(root: Path, *overrides: str) -> DictConfig:
    """Return the configuration of a training on the events of a folder, with its cache beside them."""
    words = ["data=parquet", f"data.root={root}", f"data.cache={root.parent}", "split=leave_last_out"]
    words += ["negatives=uniform", "data.time=order", "item_tower.sparse=true", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=words)


class Steps:
    """Training steps, optimizer included, on the data of a configuration."""

    def __init__(self, config: DictConfig) -> None:
        dataset = open_data(config)
        model = build_towers(config, dataset)
        self.module = build_module(config, dataset, model=model)
        self.module.log = lambda *_, **__: None  # type: ignore[method-assign]
        self.optimizer = self.module.optimizer_factory.optimizer(model)
        loader = build_data(config, dataset).train_dataloader()
        self.batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def take(self) -> int:
        """Take a step, and return the number of its targets."""
        batch = next(self.batches)
        loss = self.module.training_step(batch, 0)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return len(batch.target_idx)

    def seconds(self) -> float:
        begin = time.perf_counter()
        self.take()
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--num-events", type=int, default=3_000_000)
    parser.add_argument("--num-steps", type=int, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = {}
        for size in arguments.num_items:
            write_events(Path(folder) / str(size), size, arguments.num_events)
            sizes[size] = Steps(composed(Path(folder) / str(size)))
        seconds: dict[int, list[float]] = {size: [] for size in sizes}
        for number in range(arguments.num_steps + 5):
            for size, steps in sizes.items():
                spent = steps.seconds()
                if number >= 5:
                    seconds[size].append(spent)
    base = statistics.median(seconds[arguments.num_items[0]])
    for size, spent in seconds.items():
        print(f"{size:>9,} items: {statistics.median(spent) / base:.2f} x a step of {arguments.num_items[0]:,} items")


if __name__ == "__main__":
    main()
