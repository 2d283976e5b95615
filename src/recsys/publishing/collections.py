"""Fills the collection of a release in a vector database, and tunes the search in it."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from recsys.core.errors import UserError
from recsys.core.progress import Progress
from recsys.core.types import Float32Array
from recsys.index import tune
from recsys.index.vector_database import CollectionIndex, VectorDatabase
from recsys.publishing.release_check import IndexQueries, index_recall
from recsys.release.collections import record_collection
from recsys.release.manifest import EMBEDDINGS, ITEMS, Manifest
from recsys.release.precision import decode
from recsys.release.store import ReleaseStore

log = logging.getLogger("recsys")


def fill_collection(
    folder: Path,
    manifest: Manifest,
    *,
    store: ReleaseStore,
    database: VectorDatabase,
    halves: tuple[Float32Array, Float32Array],
    recall_target: float,
) -> Manifest:
    """Insert the items of a release that is not visible yet, tune the search, and record it in the manifest.

    A collection that exists is kept, because its name is the hash of its content.

    Args:
        folder: folder of the release.
        manifest: its manifest, with the version.
        store: store that will hold the release; it records where the collection is.
        database: engine that gets the collection.
        halves: user embeddings that tune the search, and others that check it.
        recall_target: share of the exact top k that a search must find.

    Returns:
        The manifest, whose `index["collection"]` has effort, recall and tuning.

    Raises:
        UserError: If the database refuses the items, or a search misses the recall target at any breadth.
    """
    version = manifest.version
    embeddings = decode(np.load(folder / EMBEDDINGS, mmap_mode="r"))
    record_collection(store.root, version, database.address)
    if version in database.versions():
        log.info("%s holds the items of %s already", database.address, version)
        return _tuned(manifest, embeddings, database=database, halves=halves, recall_target=recall_target)
    log.info("inserting %s items into %s", f"{len(embeddings):,}", database.address)
    with Progress("filling the collection"):
        database.fill(version, pq.read_table(folder / ITEMS).drop_columns(["item_idx"]), embeddings)
    try:
        return _tuned(manifest, embeddings, database=database, halves=halves, recall_target=recall_target)
    except BaseException:
        database.drop(version)
        raise


def _tuned(
    manifest: Manifest,
    embeddings: Float32Array,
    *,
    database: VectorDatabase,
    halves: tuple[Float32Array, Float32Array],
    recall_target: float,
) -> Manifest:
    version, most = manifest.version, database.max_breadth(len(embeddings))
    collection = CollectionIndex(database, version, num_items=len(embeddings), max_breadth=most)
    k = min(100, max(1, len(embeddings) // 10))
    with Progress("tuning the collection"):
        tuning = tune(collection, embeddings, queries=halves[0], recall_target=recall_target, k=k)
    recall = index_recall(collection, embeddings, IndexQueries.of(embeddings, halves[1], k=k))
    if not tuning.reached:
        raise UserError(
            f"index.database: a search finds {tuning.chosen.recall:.4f} of the exact top {k} at most, expected "
            f"{recall_target}"
        )
    log.info("collection recall@%d %.4f, measured on %d users", k, recall, len(halves[1]))
    record = {
        "engine": database.address.partition("://")[0],
        "max_breadth": most,
        "effort": collection.effort._asdict(),
        "recall": recall,
        "tuning": tuning.to_json(),
    }
    return dataclasses.replace(manifest, index={**manifest.index, "collection": record})
