"""Write events of several types: python make_data.py FOLDER."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

USERS, ITEMS, EVENTS, TOPICS = 200, 120, 6000, 6


def main(folder: Path) -> None:
    """People view everything, and save or buy mostly in their own topic."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    topic = rng.integers(TOPICS, size=ITEMS)
    favourite = rng.integers(TOPICS, size=USERS)
    user = rng.integers(USERS, size=EVENTS)
    item = rng.integers(ITEMS, size=EVENTS)
    action = np.full(EVENTS, "view", dtype=object)
    for row in np.flatnonzero(rng.random(EVENTS) < 0.4):
        item[row] = rng.choice(np.flatnonzero(topic == favourite[user[row]]))
        action[row] = "purchase" if rng.random() < 0.2 else "save"
    time = np.sort(rng.integers(0, 60 * 86400, size=EVENTS)) + 1735689600
    events = {"user_id": user, "item_id": item, "timestamp": time, "action": action.tolist()}
    pq.write_table(pa.table(events), folder / "interactions.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
