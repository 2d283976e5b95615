"""A run on newer data than its own: the same towers, with the items, counts and ages of the newer data."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from recsys.core.index_time import IndexTime
from recsys.data.batches.builder import BatchBuilder
from recsys.data.dataset import PreparedDataset
from recsys.experiments.assembly import corpus_of
from recsys.experiments.item_biases import set_bias
from recsys.experiments.trained_run import TrainedRun
from recsys.publishing.index_times import with_parts
from recsys.publishing.towers import Towers

log = logging.getLogger("recsys")


def absolute(root: str) -> str:
    """Return a data folder as a path that does not depend on the working directory."""
    return root if "://" in root else str(Path(root).absolute())


def on_newer_data(towers: Towers, dataset: PreparedDataset, *, root: str, index_time: IndexTime | None) -> TrainedRun:
    """Return towers on newer data as a run, with the item biases of a time.

    The corpus is every item of the newer data that the towers can place: by a trained id, or by its features.

    Args:
        towers: trained towers.
        dataset: data that `Towers.prepare` returned for the folder `root`.
        root: data folder.
        index_time: time of the index, after which no event is read; None if the data has no clock.
    """
    if index_time is not None:
        now = index_time.now
        dataset = with_parts(dataset, train_until=towers.train_until, since=now, until=now)
    model = towers.on(dataset)
    set_bias(model, dataset, config=towers.config, index_time=index_time)
    counts = np.bincount(np.asarray(dataset.item_idx), minlength=dataset.num_items + 1)
    present = np.flatnonzero((counts > 0) | dataset.has_features)
    corpus = np.intersect1d(corpus_of(model, dataset), present, assume_unique=True)
    log.info(
        "%s: %d items, %d of them new to the towers; %d items of the towers are gone",
        root,
        len(corpus),
        int((corpus > len(towers.codes.item_ids)).sum()),
        len(towers.codes.item_ids) - int((present <= len(towers.codes.item_ids)).sum()),
    )
    history = towers.config.history
    builder = BatchBuilder(dataset, history.max_events, predict_first=history.predict_first)
    return TrainedRun(
        towers.run, towers.with_root(root), dataset, model, corpus, builder, towers.metrics, towers.state(dataset)
    )


def record(towers: Towers, root: str) -> dict[str, Any]:
    """Return what a manifest records about newer data; see `Manifest.refreshed`."""
    codes = towers.codes
    users = 0 if codes.user_ids is None else len(codes.user_ids)
    return {"data": root, "known": {"items": len(codes.item_ids), "users": users}}
