"""Mining of hard negatives: neighbours of items in the embedding space of an earlier run."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
import xxhash
from omegaconf import DictConfig
from torch import Tensor

from recsys.core.columns import load_array
from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.data.dataset import PreparedDataset
from recsys.data.sources.files import build_once, digest, fingerprint
from recsys.experiments.assembly import Miner
from recsys.experiments.trained_run import TrainedRun, load_run
from recsys.index import Auto, IVFFlat
from recsys.models.blend import item_vectors

log = logging.getLogger("recsys")

# Number of items that are encoded and searched at a time.
_ROWS = 65_536


def miner(config: DictConfig) -> Miner:
    """Return a miner that keeps neighbours in the cache, so that all processes and starts of a run share them."""
    return partial(_cached_neighbors, Path(config.data.cache) / "mined")


def nearest_items(run: TrainedRun, dataset: PreparedDataset, *, corpus: Tensor, num_neighbors: int) -> Tensor:
    """Return the items of the corpus that are nearest to each item by cosine in an earlier run.

    Items are joined by their ids, because the data may have changed. The prior shift of retrieval is not part of the
    embeddings. The search is exact up to some ten thousands of items.

    Args:
        run: earlier run.
        dataset: data set of the model that trains now.
        corpus: int64, item_idx of the items that may be neighbours.
        num_neighbors: number of neighbours of each item, k.

    Returns:
        int64 [N + 1, k] by item_idx of `dataset`, nearest first, filled up with 0. An item is not its own neighbour.
        Items that the run cannot recommend have no neighbours and are not neighbours.
    """
    wanted = np.zeros(dataset.num_items + 1, bool)
    wanted[corpus.numpy()] = True
    now = _translate(run.dataset.item_ids.take(pa.array(run.corpus - 1)), dataset.item_ids)
    shared = (now > 0) & wanted[now]
    item_idx, embeddings = now[shared], _embeddings(run, run.corpus[shared])
    neighbors = np.zeros((dataset.num_items + 1, num_neighbors), np.int64)
    if not len(item_idx):
        return torch.from_numpy(neighbors)
    index = Auto(IVFFlat())
    index.build(embeddings)
    for begin in range(0, len(item_idx), _ROWS):
        rows = np.arange(begin, min(begin + _ROWS, len(item_idx)))
        _, found = index.search(embeddings[rows], num_neighbors + 1)
        # The item itself and missing results go last. A stable sort keeps the order of the others.
        useless = (found == rows[:, None]) | (found < 0)
        order = np.argsort(useless, axis=1, kind="stable")[:, :num_neighbors]
        kept = np.where(useless, 0, item_idx[found])
        neighbors[item_idx[rows]] = np.take_along_axis(kept, order, axis=1)
    return torch.from_numpy(neighbors)


def _cached_neighbors(cache: Path, dataset: PreparedDataset, corpus: Tensor, path: str, num_neighbors: int) -> Tensor:
    weights = Path(path) / "checkpoints/best.ckpt"
    if not weights.is_file():
        raise UserError(f"negatives.run={path}: no {weights}; expected the folder of a finished run")
    content = xxhash.xxh3_128(corpus.numpy().tobytes()).hexdigest()
    folder = cache / fingerprint([digest(str(weights)), dataset.meta.fingerprint, content, num_neighbors])

    def build(aside: Path) -> None:
        log.info("mining %d neighbours of each item in %s", num_neighbors, path)
        found = nearest_items(load_run(path), dataset, corpus=corpus, num_neighbors=num_neighbors)
        np.save(aside / "neighbors.npy", found.numpy())

    build_once(folder, build)
    return torch.from_numpy(np.array(load_array(folder / "neighbors.npy")))


def _translate(item_ids: pa.Array, known: pa.Array) -> npt.NDArray[np.int64]:
    """Return the item_idx of outside ids, 0 for unknown ones."""
    if item_ids.type != known.type:
        raise UserError(f"negatives.run: its item ids are {item_ids.type}, expected {known.type} as in the data")
    rows = pc.index_in(item_ids, value_set=known)
    return np.asarray(pc.add(pc.fill_null(rows, -1), 1)).astype(np.int64)


@torch.no_grad()
def _embeddings(run: TrainedRun, item_idx: npt.NDArray[np.int64]) -> Float32Array:
    parts = [item_vectors(run.model, rows) for rows in torch.from_numpy(item_idx).split(_ROWS)]
    return F.normalize(torch.cat(parts), dim=1).numpy() if parts else np.zeros((0, 1), np.float32)
