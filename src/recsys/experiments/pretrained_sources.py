"""Sources of pretrained item embeddings: a factorisation of the training events, or an earlier run.

Shapes: U users, N items with training events, W width.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from scipy.sparse import diags
from scipy.sparse.linalg import svds

from recsys.baselines import als
from recsys.baselines.interactions import Interactions
from recsys.core.columns import ragged_positions
from recsys.core.errors import UnsuitableDataError, UserError
from recsys.core.types import Float32Array
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.ranking import encode_corpus
from recsys.experiments.trained_run import load_run

log = logging.getLogger("recsys")


class SVDEmbeddings:
    """Singular vectors of the interaction matrix, times the square roots of their singular values.

    An entry of the matrix is divided by the square roots of the numbers of events of its user and of its item, so that
    the most active ones do not dominate (Shen et al. 2021, "How powerful is graph convolution for recommendation?";
    PureSVD, Cremonesi et al. 2010, omits this).

    Args:
        until: share of the training events to learn from, the oldest ones; 1 for all.
        seed: seed of the first vector of the iteration.
    """

    def __init__(self, until: float = 1.0, seed: int = 0) -> None:
        self.until, self.seed = _share(until), seed

    def __call__(self, dataset: PreparedDataset, width: int) -> Float32Array:
        """Return a table of item embeddings [num_trained + 1, width]; see `recsys.models.pretrained`."""
        events = Interactions(oldest(dataset, self.until), "train")
        matrix = events.users.astype(np.float64)
        if width >= min(matrix.shape):
            raise UserError(
                f"item_tower.pretrained.width: found {width}, expected less than {min(matrix.shape)}: there are "
                f"{matrix.shape[0]} users and {matrix.shape[1]} items"
            )
        by_user, by_item = (np.maximum(matrix.sum(axis).A1, 1.0) ** -0.5 for axis in (1, 0))
        start = np.random.default_rng(self.seed).standard_normal(min(matrix.shape))
        _, values, items = svds(diags(by_user) @ matrix @ diags(by_item), k=width, v0=start)
        return _table((items * np.sqrt(values)[:, None]).T, events)


class ALSEmbeddings:
    """Item factors of alternating least squares (`recsys.baselines.als`).

    Args:
        alpha: confidence in an event.
        l2: strength of regularisation.
        iterations: passes over users and items.
        until: share of the training events to learn from, the oldest ones; 1 for all.
        seed: seed of the first factors.
    """

    def __init__(
        self, alpha: float = 20.0, l2: float = 0.01, *, iterations: int = 15, until: float = 1.0, seed: int = 0
    ) -> None:
        self.alpha, self.l2, self.iterations, self.seed = alpha, l2, iterations, seed
        self.until = _share(until)

    def __call__(self, dataset: PreparedDataset, width: int) -> Float32Array:
        """Return a table of item embeddings [num_trained + 1, width]; see `recsys.models.pretrained`."""
        model = als.ALS(width, self.alpha, l2=self.l2, iterations=self.iterations, seed=self.seed)
        events = Interactions(oldest(dataset, self.until), "train")
        model.fit(events)
        return _table(model.item_factors, events)


class EarlierRunEmbeddings:
    """Item embeddings of a finished run, matched by item_id.

    The user must choose a run that has not learned from events that are evaluated.

    Args:
        path: folder of the run.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, dataset: PreparedDataset, width: int) -> Float32Array:
        """Return a table of item embeddings [num_trained + 1, width]; see `recsys.models.pretrained`."""
        run = load_run(self.path)
        dim = run.model.item_tower.dim
        if dim != width:
            raise UserError(f"item_tower.pretrained.width: found {width}, but items of {self.path} have {dim}")
        ids = dataset.item_ids.slice(0, dataset.num_trained)
        theirs = run.dataset.item_ids.take(pa.array(run.corpus - 1))
        if ids.type != theirs.type:
            raise UserError(f"{self.path}: item_id is {theirs.type}, but {ids.type} in this data")
        rows = np.asarray(pc.index_in(ids, value_set=theirs).fill_null(-1))
        found = np.flatnonzero(rows >= 0)
        if not len(found):
            raise UserError(f"{self.path}: has none of the {dataset.num_trained} trained items of this data")
        log.info("pretrained: %s has embeddings of %d of %d trained items", self.path, len(found), dataset.num_trained)
        table = np.zeros((dataset.num_trained + 1, width), np.float32)
        # The bias of retrieval, a further dimension, is left out.
        embeddings = encode_corpus(run.model, torch.from_numpy(run.corpus[rows[found]]))
        table[found + 1] = embeddings[:, :width].cpu().numpy()
        return table


def oldest(dataset: PreparedDataset, share: float) -> PreparedDataset:
    """Return the data set with only the oldest training events as its training part.

    Items keep their numbers. With `history.targets_since` of the same share, training takes only the other events as
    targets.

    Args:
        dataset: data set to restrict.
        share: quantile of the times of training events at which the part ends.

    Raises:
        UserError: If the share is below 1 and the data has no times.
    """
    if share == 1.0:
        return dataset
    if not dataset.meta.time_resolution.has_order:
        raise UnsuitableDataError(f"until={share:g} with data.time=none: expected 1, or timestamps")
    begin, lengths = dataset.offsets[:-1], dataset.train_end - dataset.offsets[:-1]
    is_old = np.asarray(dataset.time[ragged_positions(begin, lengths)]) < dataset.training_time(share)
    old = np.bincount(np.repeat(np.arange(len(begin)), lengths)[is_old], minlength=len(begin))
    return dataclasses.replace(dataset, train_end=begin + old)


def _table(factors: npt.NDArray[np.floating], events: Interactions) -> Float32Array:
    """Return factors [N, W] of items 1..N as a table, with zeros for item 0 and items without events."""
    table = np.zeros((len(factors) + 1, factors.shape[1]), np.float32)
    known = np.flatnonzero(events.counts())
    table[known + 1] = factors[known]
    return table


def _share(until: float) -> float:
    if not 0 < until <= 1:
        raise ValueError(f"until: found {until}, expected a share above 0 and at most 1")
    return until
