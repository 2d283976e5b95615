"""Write a search log: python make_data.py FOLDER."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

USERS, EVENTS = 200, 6000
COLOURS, THINGS = ["red", "blue", "green", "black", "white"], ["lamp", "chair", "shoes", "bottle", "tent", "kite"]


def main(folder: Path) -> None:
    """Each event is a click on a result of a query; two items out of three match both words."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    names = [(colour, thing) for colour in COLOURS for thing in THINGS for _ in range(4)]
    item = rng.integers(len(names), size=EVENTS)
    queries = []
    for number in item:
        colour, thing = names[number]
        queries.append(rng.choice([f"{colour} {thing}", f"{thing} {colour}", thing]))
    user = rng.integers(USERS, size=EVENTS)
    time = np.sort(rng.integers(0, 30 * 86400, size=EVENTS)) + 1735689600
    events = {"user_id": user, "item_id": item, "timestamp": time, "query": queries}
    pq.write_table(pa.table(events), folder / "interactions.parquet")
    titles = [f"{colour} {thing} no. {number}" for number, (colour, thing) in enumerate(names)]
    pq.write_table(pa.table({"item_id": range(len(names)), "title": titles}), folder / "items.parquet")
    asked = {"user_id": [1, 2, 3], "query": ["red lamp", "blue tent", "kite"]}
    pq.write_table(pa.table(asked), folder / "asked.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
