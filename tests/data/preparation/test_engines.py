"""Spark and DuckDB prepare the identical data set, byte for byte."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from folders import SMALL, prepared, write_folder

from recsys.data.preparation.engines import Spark
from recsys.data.preparation.splits import GivenSplit, LeaveLastOutSplit, RandomSplit, Split, TemporalSplit

pytestmark = [
    pytest.mark.spark,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("pyspark") is None or shutil.which("java") is None, reason="needs PySpark and Java"
    ),
]

FEATURES: dict[str, Any] = {
    "interactions": {
        "rating": {"role": "event"},
        "surface": {"role": "request"},
        "query": {"kind": "text", "role": "request"},
    },
    "items": {"title": {"kind": "text"}, "made": {"kind": "numeric"}},
}
# Spark takes a second for each feature, and features do not depend on times and splits.
FEW: dict[str, Any] = {"interactions": {"surface": {"role": "request"}}}


def write_world(root: Path, ids: type[int] | type[str], stamps: pa.DataType, *, has_all: bool, seed: int = 0) -> None:
    """Tables with every kind of feature, nulls, repeated events, ties, unseen items and users."""
    draw = np.random.default_rng(seed)
    words = np.array(["réd", "Blue", "shoe", "東京", "x_1", ""])

    def some(values: Any, share: float = 0.2) -> pa.Array:
        return pa.array(values, mask=draw.random(len(values)) < share)

    def named(numbers: Any) -> list[Any]:
        return [ids(f"é{n}" if n % 7 == 0 else n) if ids is str else int(n) for n in numbers]

    shards = []
    for shard in range(3):
        size = 150
        micros = pa.array(draw.integers(-5, 40, size) * 43_200_000_000 + 123_456)
        shards.append(
            {
                "user_id": named(draw.integers(0, 40, size)),
                "item_id": named(draw.integers(0, 30, size)),
                "timestamp": micros.cast(pa.timestamp("us")).cast(stamps, safe=False),
                "split": draw.choice(["train", "test"], size, p=[0.8, 0.2]),
                "rating": some(draw.normal(size=size)),
                "surface": some(draw.choice(["home", "search", "Ähnlich"], size)),
                "query": some([" ".join(draw.choice(words, 3)) for _ in range(size)]),
                "engaged": draw.integers(0, 3, size).astype(np.int64 if shard else np.int8),
            }
        )
    items = np.arange(5, 45)
    tags = [draw.choice(["a", "b", "ç", "d"], draw.integers(0, 4)).tolist() for _ in items]
    vectors = [draw.normal(size=3).astype(np.float32) if draw.random() < 0.8 else None for _ in items]
    if not has_all:
        for shard in shards:
            del shard["rating"], shard["query"]
        write_folder(root, shards, items={"item_id": named(items), "color": some(draw.choice(["r", "g"], len(items)))})
        return
    write_folder(
        root,
        shards,
        items={
            "item_id": named(items),
            "color": some(draw.choice(["r", "g", "b"], len(items))),
            "tags": some(tags),
            "years": some([draw.integers(0, 5, 2).tolist() for _ in items]),
            "price": some(draw.normal(size=len(items)) * 1e6),
            "look": pa.array(vectors, pa.list_(pa.float32(), 3)),
            "title": some([" ".join(draw.choice(words, 4)) for _ in items]),
            "code": [f"code {i}" for i in items],
            "made": some(draw.integers(0, 1000, len(items)).astype("datetime64[D]")),
            "new": some(draw.random(len(items)) < 0.5),
            "_metadata": some(draw.choice(["x", "y"], len(items))),
            "": [1] * len(items),
        },
        users={"user_id": named(range(30, 50)), "age": some(draw.integers(1, 5, 20)), "time": list(range(20))},
    )


@pytest.mark.parametrize(
    ("ids", "stamps", "split", "settings", "has_all"),
    [
        (
            str,
            pa.date32(),
            LeaveLastOutSplit(),
            {"min_user_events": 4, "min_item_events": 5, "time_resolution": "day", "engaged": "engaged"},
            True,
        ),
        (int, pa.timestamp("ns"), GivenSplit(), {"time_resolution": "order"}, False),
        (int, pa.string(), RandomSplit(0.6, 0.2), {"engaged": "engaged"}, True),
        (str, pa.timestamp("ms", "Asia/Tokyo"), TemporalSplit(0.6, 0.2), {}, False),
    ],
)
def test_spark_writes_the_bytes_of_duckdb(
    tmp_path: Path, ids: Any, stamps: pa.DataType, split: Split, settings: dict[str, Any], has_all: bool
) -> None:
    # Patterns, a partition, an escape and a list of folders for engines that interpret paths.
    root, cache = tmp_path / "a=b, {c} %20/data[1]", tmp_path / "a,b [*]"
    settings = settings | {"features": FEATURES if has_all else FEW}
    write_world(root, ids, stamps, has_all=has_all)
    write_world(root.with_name("data1"), ids, stamps, has_all=has_all, seed=1)
    one = prepared(root, split, SMALL, cache / "duckdb", **settings)
    other = prepared(root, split, Spark(memory="1g", shuffle_partitions=3), cache / "spark", **settings)
    assert one.path.name == other.path.name
    names = {path.relative_to(one.path) for path in one.path.rglob("*") if path.is_file()}
    assert names == {path.relative_to(other.path) for path in other.path.rglob("*") if path.is_file()}
    assert len(names) > (30 if has_all else 10)
    for name in sorted(names):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name
