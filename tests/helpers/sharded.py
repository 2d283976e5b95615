"""Data sets in shards, as a distributed engine leaves them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from recsys.core.columns import Ragged
from recsys.data.dataset import PreparedDataset
from recsys.data.shards import FILE, Shard, Shards


def in_shards(whole: PreparedDataset, folder: Path, cuts: list[int]) -> Path:
    """Write the data set again, with events and exposures in shards that begin at the users `cuts`."""
    shutil.copytree(whole.path, folder, ignore=shutil.ignore_patterns("events", "exposures"), dirs_exist_ok=True)
    events = {"item_idx": whole.item_idx, "time": whole.time, "weight": whole.weight}
    columns: dict[str, Any] = {name: values for name, values in events.items() if values is not None}
    ragged: dict[str, Ragged] = {}
    for feature in whole.schema.owned_by("interactions"):
        column = whole.columns[feature.key]
        if isinstance(column, Ragged):
            ragged[f"feature.{feature.name}"] = column
        else:
            columns[f"feature.{feature.name}"] = column.values
    kinds: list[tuple[str, Any, dict[str, Any], dict[str, Ragged]]] = [("events", whole.offsets, columns, ragged)]
    if (shown := whole.exposures) is not None:
        kinds.append(("exposures", shown.offsets, {"item_idx": shown.item_idx, "time": shown.time}, {}))
    for kind, offsets, arrays, bags in kinds:
        shards = []
        for first, last in zip(cuts, [*cuts[1:], whole.num_users], strict=True):
            begin, end = int(offsets[first]), int(offsets[last])
            shards.append(Shard(f"{first}", first, end - begin))
            target = folder / "moved" / kind / f"{first}"
            target.mkdir(parents=True)
            for name, values in arrays.items():
                np.save(target / f"{name}.npy", values[begin:end])
            for name, bag in bags.items():
                own = bag.take(np.arange(begin, end))
                np.save(target / f"{name}.values.npy", own.values)
                np.save(target / f"{name}.offsets.npy", own.offsets)
        (folder / kind).mkdir()
        names = [*arrays, *(f"{name}.{part}" for name in bags for part in ("values", "offsets"))]
        Shards(str(folder / "moved" / kind), tuple(names), tuple(shards)).save(folder / kind / FILE)
    if shown is not None:
        np.save(folder / "exposures/offsets.npy", shown.offsets)
    return folder
