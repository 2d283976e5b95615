"""Write a small shop with column names of its own: python make_data.py FOLDER."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CUSTOMERS, ARTICLES, ORDERS, DEPARTMENTS = 200, 120, 4000, ["garden", "kitchen", "sport", "toys"]


def main(folder: Path) -> None:
    """Customers buy mostly in one department each."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    department = rng.integers(len(DEPARTMENTS), size=ARTICLES)
    favourite = rng.integers(len(DEPARTMENTS), size=CUSTOMERS)
    customer = rng.integers(CUSTOMERS, size=ORDERS)
    article = rng.integers(ARTICLES, size=ORDERS)
    for row in np.flatnonzero(rng.random(ORDERS) < 0.8):
        article[row] = rng.choice(np.flatnonzero(department == favourite[customer[row]]))
    day = np.sort(rng.integers(90, size=ORDERS))
    orders = pa.table(
        {
            "customer": [f"C{number:04}" for number in customer],
            "article": [f"A-{number}" for number in article],
            "bought_at": (np.datetime64("2025-01-01") + day).astype("datetime64[D]"),
        }
    )
    articles = pa.table(
        {
            "article": [f"A-{number}" for number in range(ARTICLES)],
            "department": [DEPARTMENTS[number] for number in department],
            "price": np.round(rng.gamma(2, 10, size=ARTICLES), 2),
        }
    )
    # A folder of shards, as an export writes them.
    (folder / "interactions.parquet").mkdir(exist_ok=True)
    for number, begin in enumerate(range(0, ORDERS, 1000)):
        pq.write_table(orders.slice(begin, 1000), folder / f"interactions.parquet/part-{number}.parquet")
    pq.write_table(articles, folder / "items.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
