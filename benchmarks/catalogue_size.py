"""Cost of an epoch as the catalogue grows and the events stay: sampled loss, row-wise updates.

    python benchmarks/catalogue_size.py

Prints the cost of a training step for each number of items, relative to the smallest. Bar: 1.5 x from 10 thousand items
to 1 million. Steps of all sizes are taken in turns, so that noise of the machine meets all of them.
"""

import argparse
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

from recsys.experiments.assembly import build_data, build_module, build_towers, open_data
from recsys.experiments.conf_files import CONF


class Steps:
    """Training steps, optimizer included, on events spread over `num_items` items."""

    def __init__(self, num_items: int, num_events: int, folder: Path) -> None:
        rng = np.random.default_rng(0)
        root = folder / f"{num_items}"
        root.mkdir()
        # Every item occurs, so that the table really has num_items rows; the rest is drawn by popularity.
        items = np.concatenate(
            [np.arange(num_items), (num_items * rng.random(num_events - num_items) ** 3).astype(int)]
        )
        users = np.sort(rng.integers(0, num_events // 15, num_events))
        table = {"user_id": users, "item_id": rng.permutation(items), "timestamp": np.arange(num_events)}
        pq.write_table(pa.table(table), root / "interactions.parquet")
        overrides = ["data=parquet", f"data.root={root}", f"data.cache={folder}", "split=leave_last_out"]
        overrides += ["negatives=uniform", "data.time=order", "item_tower.sparse=true"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", overrides=overrides)
        dataset = open_data(config)
        model = build_towers(config, dataset)
        self.module = build_module(config, dataset, model=model)
        self.module.log = lambda *_, **__: None  # type: ignore[method-assign]
        self.optimizer = self.module.optimizer_factory.optimizer(model)
        self.batches = iter(build_data(config, dataset).train_dataloader())

    def seconds(self) -> float:
        begin = time.perf_counter()
        loss = self.module.training_step(next(self.batches), 0)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--num-events", type=int, default=3_000_000)
    parser.add_argument("--num-steps", type=int, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = {size: Steps(size, arguments.num_events, Path(folder)) for size in arguments.num_items}
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
