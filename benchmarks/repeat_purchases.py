"""Simulated purchases of goods that people buy again, as a data folder for training.

    python benchmarks/repeat_purchases.py FOLDER [--customers 2500]
    python train.py data=parquet data.root=FOLDER split=temporal exclude_seen=false +experiment=recommended

Each event is a repeat with a chance of 55%: one of the customer's earlier goods, where an earlier purchase counts half
after 30 days. Otherwise it is drawn by popularity and the customer's taste for departments. Times are dates.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUM_GOODS, NUM_DEPARTMENTS, DAYS, REPEATS, HALF_LIFE_DAYS = 2000, 40, 200, 0.55, 30
DAY, BEGIN = 86_400, 1_600_000_000


def main() -> None:
    """Write `interactions.parquet` and `items.parquet`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="data folder to write")
    parser.add_argument("--customers", type=int, default=2500, help="number of customers")
    arguments = parser.parse_args()
    events, goods = simulate(arguments.customers, seed=1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(events, arguments.folder / "interactions.parquet")
    pq.write_table(goods, arguments.folder / "items.parquet")


def simulate(num_customers: int, *, seed: int) -> tuple[pa.Table, pa.Table]:
    """Return the events in random order, and the goods."""
    random = np.random.default_rng(seed)
    popularity = random.zipf(1.6, NUM_GOODS).clip(max=500).astype(float)
    department = random.integers(0, NUM_DEPARTMENTS, NUM_GOODS)
    tastes = random.dirichlet(np.full(NUM_DEPARTMENTS, 0.15), num_customers)
    customers, items, times = [], [], []
    for customer, taste in enumerate(tastes):
        time = np.sort(random.uniform(0, DAYS * DAY, int(np.clip(random.lognormal(3.0, 0.7), 4, 200))))
        likely = popularity * taste[department]
        likely /= likely.sum()
        bought: list[int] = []
        for place, now in enumerate(time):
            if bought and random.random() < REPEATS:
                weight = np.exp2((time[:place] - now) / DAY / HALF_LIFE_DAYS)
                bought.append(bought[random.choice(place, p=weight / weight.sum())])
            else:
                bought.append(int(random.choice(NUM_GOODS, p=likely)))
        customers += [f"cust-{customer:05d}"] * len(time)
        items += bought
        times += time.tolist()
    price = random.lognormal(2, 1, NUM_GOODS).round(2)
    order = random.permutation(len(items))
    dates = [datetime.fromtimestamp(BEGIN + time, UTC).date().isoformat() for time in times]
    events = pa.table({"user_id": customers, "item_id": [f"sku-{item:05d}" for item in items], "timestamp": dates})
    names = [f"sku-{item:05d}" for item in range(NUM_GOODS)]
    goods = pa.table({"item_id": names, "department": [f"d{number}" for number in department], "price": price})
    return events.take(order), goods


if __name__ == "__main__":
    main()
