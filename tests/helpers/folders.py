"""Folders of small tables, and the content of prepared data sets in plain Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.dataset import PreparedDataset
from recsys.data.preparation.engines import DuckDB, Engine
from recsys.data.preparation.prepare import prepare
from recsys.data.preparation.settings import DataSettings
from recsys.data.preparation.splits import LeaveLastOutSplit, Split
from recsys.data.sources import ParquetFolder

Columns = Mapping[str, Any]
SMALL = DuckDB(memory="500MB", threads=1)


def write_table(file: Path, table: Columns | pa.Table | Sequence[Columns | pa.Table]) -> None:
    """Write one file, or a folder of shards if `table` is a list."""
    if isinstance(table, list):
        file.mkdir(parents=True)
        for number, shard in enumerate(table):
            write_table(file / f"part-{number:03}.parquet", shard)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(dict(table)), file)


def write_folder(root: Path, interactions: Any, items: Any = None, users: Any = None) -> Path:
    """Write a folder of the data contract."""
    for name, table in {"interactions": interactions, "items": items, "users": users}.items():
        if table is not None:
            write_table(root / f"{name}.parquet", table)
    return root


def prepared(
    root: Path, split: Split | None = None, engine: Engine = SMALL, cache: Path | None = None, **settings: Any
) -> PreparedDataset:
    """Prepare the folder in a cache beside it."""
    cache = cache or root.parent / "cache"
    source, split = ParquetFolder(str(root)), split or LeaveLastOutSplit()
    return prepare(source, split, settings=DataSettings(**settings), cache=cache, engine=engine)


def histories(dataset: PreparedDataset) -> dict[Any, tuple[list[Any], list[Any], list[Any]]]:
    """Return the outside ids of each user's items in training, validation and test, in order."""
    users, items = dataset.user_ids.to_pylist(), np.array([None, *dataset.item_ids.to_pylist()], object)
    ids = items[np.asarray(dataset.item_idx)].tolist()
    bounds = zip(dataset.offsets[:-1], dataset.train_end, dataset.val_end, dataset.offsets[1:], strict=True)
    return {
        user: (ids[begin:train], ids[train:val], ids[val:end])
        for user, (begin, train, val, end) in zip(users, bounds, strict=True)
    }


def events(rows: Sequence[tuple[Any, Any, int]]) -> dict[str, list[Any]]:
    """Return columns from (user, item, time) rows."""
    return {
        "user_id": [row[0] for row in rows],
        "item_id": [row[1] for row in rows],
        "timestamp": [row[2] for row in rows],
    }


# Two users, three events each: enough for every part.
EVENTS = events([(1, 10, 1), (1, 11, 2), (1, 12, 3), (2, 10, 1), (2, 13, 2), (2, 14, 3)])
