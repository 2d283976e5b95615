"""What growing takes from an earlier data set of the same settings: which one, its events, and what it has kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from recsys.core.columns import load_array
from recsys.data.dataset import KEPT, PreparedDataset
from recsys.data.encoding import plain
from recsys.data.preparation.column_writers import beside
from recsys.data.preparation.job import Build
from recsys.data.preparation.pipeline import PARTS

log = logging.getLogger("recsys")

Indices = npt.NDArray[np.int64]


class CannotGrowError(Exception):
    """The earlier data set is of no use; says why."""


class Earlier(NamedTuple):
    """A data set of the same settings, prepared from the first `num_shards` of the shards."""

    path: Path
    num_shards: int


class Kept(NamedTuple):
    """What is kept of the earlier data set: times as read, and by name within the engine, numbers or unknown values."""

    times: Indices
    val_is_given: bool
    columns: dict[str, Any]


def find_earlier(prepared: Path, settings: Mapping[str, Any]) -> Earlier | None:
    """The data set of `prepared` with most of the shards, of equal settings; tables of users and items may differ."""
    wanted = json.loads(json.dumps(settings, default=repr))
    shards = wanted.pop("files")["interactions"]
    found: list[Earlier] = []
    for file in prepared.glob("[!.]*/meta.json"):
        try:
            described = json.loads(file.read_text())["settings"]
            known = described.pop("files")["interactions"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if described != wanted:
            continue
        if known == shards[: len(known)]:
            found.append(Earlier(file.parent, len(known)))
        elif known[0] in shards:
            log.info("no use is made of %s: its shards are no longer the first ones", file.parent)
    return max(found, key=lambda earlier: earlier.num_shards, default=None)


def open_earlier(path: Path, job: Build) -> tuple[PreparedDataset, Kept]:
    """The earlier data set, with everything that is read of it."""
    old = PreparedDataset.open(path)
    kept = path / KEPT
    times = old.time if job.keeps_times else load_array(kept / "time.npy")
    columns: dict[str, Any] = {}
    for name, plan in job.plans_of("interactions").items():
        stem = kept / f"feature.{plan.name}"
        if plan.kind == "numeric":
            columns[name] = load_array(beside(stem, ".npy"))
        elif plan.kind in ("categorical", "multi_categorical"):
            columns[name] = plain(pq.read_table(beside(stem, ".parquet"))["value"])
    if not len(old.item_idx) == len(old.time) == len(times) == old.meta.num_events == old.offsets[-1]:
        raise ValueError("its columns are of more than one length")
    if len(old.item_ids) != old.num_items or len(old.user_ids) != old.num_users:
        raise ValueError("there are not as many ids as users and items")
    return old, Kept(times, json.loads((kept / PARTS).read_text())["val_is_given"], columns)


def old_lengths(old: PreparedDataset, by_part: bool, val_is_given: bool) -> Indices:
    """Events of each user in each part of the files' column, or altogether."""
    ends = [old.train_end, old.val_end, old.offsets[1:]] if by_part else [old.offsets[1:]]
    if by_part and not val_is_given:
        ends[0] = old.val_end
    return np.diff(np.stack([old.offsets[:-1], *ends], axis=1), axis=1)
