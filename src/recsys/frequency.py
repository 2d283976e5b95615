"""How probable is an item as a target of a training batch: what logQ corrects for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recsys.data.dataset import PreparedDataset


def target_counts(dataset: PreparedDataset, predict_first: bool) -> Tensor:
    """How often each item is a target in one epoch; float64 [N + 1], indexed by item_idx.

    Every training event is a target once an epoch, save the first event of a user (and the events of equal time with
    it) where the empty history predicts nothing.
    """
    counts = np.bincount(_training_items(dataset), minlength=dataset.num_items + 1).astype(np.float64)
    if not predict_first:
        users = np.flatnonzero(dataset.train_end > dataset.offsets[:-1])
        counts -= np.bincount(_first_baskets(dataset, users), minlength=len(counts))
    return torch.from_numpy(counts)


def target_probabilities(dataset: PreparedDataset, predict_first: bool) -> Tensor:
    """Probability that one target is the item; float64 [N + 1], sums to one."""
    counts = target_counts(dataset, predict_first)
    return counts / counts.sum()


def _training_items(dataset: PreparedDataset) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    train_part = np.zeros(len(dataset.item_idx) + 1, np.int8)
    np.add.at(train_part, dataset.offsets[:-1], 1)
    np.add.at(train_part, dataset.train_end, -1)
    return np.asarray(dataset.item_idx)[np.cumsum(train_part[:-1]) > 0]


def _first_baskets(
    dataset: PreparedDataset, users: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    begin, end = dataset.offsets[users], dataset.train_end[users]
    if dataset.meta.time == "none":
        return np.asarray(dataset.item_idx[begin])
    items, position, waiting = [], begin, np.arange(len(users))
    first_time = np.asarray(dataset.time[begin])
    while len(waiting):
        items.append(np.asarray(dataset.item_idx[position[waiting]]))
        position = position + 1
        inside = position[waiting] < end[waiting]
        waiting = waiting[inside]
        waiting = waiting[np.asarray(dataset.time[position[waiting]]) == first_time[waiting]]
    return np.concatenate(items) if items else np.zeros(0, np.int32)
