"""Items that rose after the training of the towers: their popularity in the eyes of the towers.

A shift to recent popularity divides the recent share of an item by its share in training, because the logits of the
towers contain the latter. An item without training events had no share, but the towers read its features and give it a
logit nevertheless. The mean probability of the item under the softmax over the trained items takes the place of its
share. For a trained item this mean is close to the share.

Shapes: R items, N items of the data set.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from recsys.core.types import Int64Array
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.loaders import RequestLoader
from recsys.data.batches.targets import TargetSampling, TargetWeights
from recsys.data.dataset import PreparedDataset, Requests
from recsys.experiments.level_fit import best_logits
from recsys.models.blend import Model, kept_biases
from recsys.training.frequency import training_positions

# Users whose mean is taken, and draws of trained items for the sum of the softmax.
MOST_USERS, DRAWS = 500, 10_000
# Number of risen items whose logits are computed at a time.
_BLOCK = 10_000


def risen_items(dataset: PreparedDataset, recent: PreparedDataset, *, target_sampling: TargetSampling) -> Int64Array:
    """Return the items that have recent events of a positive weight and no training events; int64 [R], ascending.

    Args:
        dataset: data set whose training events are those of the towers.
        recent: the same data, whose training events reach to the time of the index.
        target_sampling: weights of events.
    """
    positions = training_positions(recent)
    weight = TargetWeights(recent, target_sampling)(positions)
    items = recent.item_idx[positions if weight is None else positions[weight.numpy() > 0]]
    trained = dataset.item_idx[training_positions(dataset)]
    has_recent, has_trained = (np.bincount(events, minlength=dataset.num_items + 1) > 0 for events in (items, trained))
    return np.flatnonzero(has_recent & ~has_trained)


@torch.inference_mode()
def ascribed_shares(model: Model, dataset: PreparedDataset, items: Int64Array, *, config: DictConfig) -> Tensor:
    """Return the share of the training targets that the towers ascribe to items; positive float64 [R].

    It is the mean over users of `exp(s(u, i)) / sum_j exp(s(u, j))` at the end of their training events. The sum over
    the trained items j is estimated from items that are drawn by their popularity. The logits s are those of the towers
    alone, without any bias of items: priors of age and recency are of the time of an index, not of training.

    Args:
        model: model in evaluation mode.
        dataset: data set whose training events are those of the model.
        items: item_idx, int64 [R].
        config: configuration of the model, or of a blend.
    """
    random = np.random.default_rng(0)
    users = np.flatnonzero(dataset.train_end > dataset.offsets[:-1])
    users = np.sort(random.permutation(users)[:MOST_USERS])
    popularity = dataset.train_count / dataset.train_count.sum()
    drawn, times = np.unique(random.choice(len(popularity), DRAWS, p=popularity), return_counts=True)
    # Importance sampling: an item that is drawn with probability p stands for 1 / (DRAWS * p) items.
    stands_for = torch.from_numpy(np.log(times / DRAWS) - np.log(popularity[drawn]))
    builder = BatchBuilder(dataset, config.history.max_events, predict_first=config.history.predict_first)
    requests = RequestLoader(builder, Requests(users, dataset.train_end[users]))
    with kept_biases(model) as parts:
        for part in parts:
            if part.item_bias is not None:
                part.item_bias = torch.zeros_like(part.item_bias)
        queries = torch.cat([model.encode_users(batch.to(model.device)) for batch, _ in requests])

        def logits(item_idx: Int64Array) -> Tensor:
            embeddings = model.encode_items(torch.from_numpy(item_idx).to(model.device))
            return best_logits(queries, embeddings / model.temperature).double().cpu()

        every = (logits(drawn) + stands_for).logsumexp(1, keepdim=True)
        blocks = np.split(items, range(_BLOCK, len(items), _BLOCK))
        shares = torch.cat([(logits(block) - every).logsumexp(0) for block in blocks])
    # Positive, because its logarithm is subtracted.
    return shares.sub(math.log(len(users))).exp().clamp(min=torch.finfo(torch.float64).tiny)
