"""Write items with text and image vectors: python make_data.py FOLDER."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

USERS, ITEMS, NEW_ITEMS, EVENTS, TOPICS, TEXT, IMAGE = 200, 120, 20, 5000, 8, 24, 16


def main(folder: Path) -> None:
    """Vectors of a topic lie near each other, as those of a text or image model would; people like two topics each."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    topic = rng.integers(TOPICS, size=ITEMS + NEW_ITEMS)
    text = rng.normal(size=(TOPICS, TEXT))[topic] + 0.5 * rng.normal(size=(len(topic), TEXT))
    image = rng.normal(size=(TOPICS, IMAGE))[topic] + 0.5 * rng.normal(size=(len(topic), IMAGE))
    # Not every item has a picture.
    images = [None if rng.random() < 0.1 else row.tolist() for row in image.astype(np.float32)]
    items = {
        "item_id": pa.array(range(len(topic)), pa.int64()),
        "text_vector": pa.array(text.astype(np.float32).tolist(), pa.list_(pa.float32())),
        "image_vector": pa.array(images, pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    likes = rng.integers(TOPICS, size=(USERS, 2))
    user = rng.integers(USERS, size=EVENTS)
    wanted = likes[user, rng.integers(2, size=EVENTS)]
    item = np.array([rng.choice(np.flatnonzero(topic[:ITEMS] == one)) for one in wanted])
    time = np.sort(rng.integers(0, 60 * 86400, size=EVENTS)) + 1735689600
    pq.write_table(pa.table({"user_id": user, "item_id": item, "timestamp": time}), folder / "interactions.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
