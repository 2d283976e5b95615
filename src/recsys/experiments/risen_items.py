"""Items that people found after the towers were trained: how popular the towers take them for.

A shift to recent popularity divides the recent share of an item by the share that it had in training, because the
logits of the towers contain that. An item without training events had none, but the towers see its features and give it
a level nevertheless. This level is the mean probability of the item under the softmax over the trained items (which for
trained items is close to their share in training), and takes the place of the missing share.

Shapes: R requests, S sampled items, N items of the data set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from recsys.core.columns import ragged_positions
from recsys.core.types import Int64Array
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.loaders import RequestLoader
from recsys.data.batches.targets import TargetSampling, TargetWeights
from recsys.data.dataset import PreparedDataset, Requests
from recsys.evaluation.ranking import encode_corpus
from recsys.experiments.new_items_offset import best_logits
from recsys.models.blend import Model, members_of

# Requests whose mean probability is taken, and items drawn by popularity for the denominator of their softmax.
MOST_REQUESTS, DRAWS = 500, 10_000


def risen_items(dataset: PreparedDataset, recent: PreparedDataset, *, target_sampling: TargetSampling) -> Int64Array:
    """Return the items with recent events of a positive weight, but without training events; int64, ascending.

    Args:
        dataset: data set whose training events are those of the towers.
        recent: the same data, whose training events reach to the time of the index.
        target_sampling: weights of events.
    """
    positions = _training_positions(recent)
    weight = TargetWeights(recent, target_sampling)(positions)
    items = recent.item_idx[positions if weight is None else positions[weight.numpy() > 0]]
    has_recent = np.bincount(items, minlength=dataset.num_items + 1) > 0
    return np.flatnonzero(has_recent & (_counts(dataset) == 0))


def _training_positions(dataset: PreparedDataset) -> Int64Array:
    begin = dataset.offsets[:-1]
    return ragged_positions(begin, dataset.train_end - begin)


def _counts(dataset: PreparedDataset) -> Int64Array:
    return np.bincount(dataset.item_idx[_training_positions(dataset)], minlength=dataset.num_items + 1)


@torch.inference_mode()
def ascribed_shares(model: Model, dataset: PreparedDataset, items: Int64Array, *, config: DictConfig) -> Tensor:
    """Return the share of the training targets that a model ascribes to each of some items; float64 [N + 1].

    It is the mean over users of `exp(s(u, i)) / sum_j exp(s(u, j))` at the end of their training events, with the sum
    over trained items j, estimated from items that are drawn by their popularity. Fixed biases are left out. All other
    items have 0.

    Args:
        model: model in evaluation mode.
        dataset: data set whose training events are those of the model.
        items: item_idx, int64.
        config: configuration of the model, or of a blend.
    """
    random = np.random.default_rng(0)
    users = np.flatnonzero(dataset.train_end > dataset.offsets[:-1])
    users = np.sort(random.permutation(users)[:MOST_REQUESTS])
    counts = _counts(dataset)
    drawn, times = np.unique(random.choice(len(counts), DRAWS, p=counts / counts.sum()), return_counts=True)
    # Importance sampling: an item that is drawn with probability p stands for 1 / (DRAWS * p) items.
    stands_for = torch.from_numpy(np.log(times / DRAWS) - np.log(counts[drawn] / counts.sum()))
    builder = BatchBuilder(dataset, config.history.max_events, predict_first=config.history.predict_first)
    requests = RequestLoader(builder, Requests(users, dataset.train_end[users]))
    with _no_fixed_bias(model):
        queries = torch.cat([model.encode_users(batch.to(model.device)) for batch, _ in requests])
        corpus = torch.from_numpy(np.concatenate([drawn, items])).to(model.device)
        logits = best_logits(queries, encode_corpus(model, corpus) / model.temperature).double().cpu()
    every = (logits[:, : len(drawn)] + stands_for).logsumexp(1, keepdim=True)
    shares = torch.zeros(dataset.num_items + 1, dtype=torch.float64)
    shares[items] = (logits[:, len(drawn) :] - every).logsumexp(0).sub(math.log(len(users))).exp()
    return shares


@contextmanager
def _no_fixed_bias(model: Model) -> Iterator[None]:
    """Take the biases of a model away that it did not learn, and give them back when the block ends."""
    parts: list[Model] = [model, *(member.model for member in members_of(model))]
    kept = [part.item_bias for part in parts]
    for part in parts:
        if part.item_bias is not None:
            part.item_bias = torch.zeros_like(part.item_bias)
    try:
        yield
    finally:
        for part, bias in zip(parts, kept, strict=True):
            part.item_bias = bias
