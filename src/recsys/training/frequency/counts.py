"""Counts of each item as a target, for the logQ correction and for the shift to recent popularity."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recsys.core.columns import ragged_positions
from recsys.core.errors import UnsuitableDataError
from recsys.core.types import Int64Array
from recsys.data.batches.targets import TargetSampling, TargetWeights
from recsys.data.dataset import NO_BIRTH, PreparedDataset


def target_counts(dataset: PreparedDataset, predict_first: bool) -> Tensor:
    """Return the number of times that each item is a target in one epoch; float64 [N + 1], indexed by item_idx.

    Every training event is a target once an epoch. Without `predict_first` the first event of a user, and the events of
    equal time with it, are not, because then an empty history predicts nothing.

    Raises:
        UnsuitableDataError: If a count needs the events of all users, and these are of one process.
    """
    counts = dataset.train_count.astype(np.float64)
    if not predict_first:
        dataset.needs_all_users()
        users = np.flatnonzero(dataset.train_end > dataset.offsets[:-1])
        counts -= np.bincount(_first_baskets(dataset, users), minlength=len(counts))
    return torch.from_numpy(counts)


def target_probabilities(dataset: PreparedDataset, predict_first: bool) -> Tensor:
    """Return the probability that one target is the item; float64 [N + 1], sums to one."""
    counts = target_counts(dataset, predict_first)
    return counts.div_(counts.sum())


# Share of the trained popularity in the recent one, so that an item without recent events keeps some.
SMOOTHING = 0.02
# Share of the recent events that is added to those in the life of a risen item: its events count 6 times at most.
EVIDENCE = 0.2


class RisenItems(NamedTuple):
    """Items with recent events that had none in training.

    Attributes:
        items: item_idx, int64 [R].
        shares: share of the training targets that the model gives each item, positive float64 [R].
    """

    items: Int64Array
    shares: Tensor


def prior_shift(
    dataset: PreparedDataset,
    half_life_days: float,
    *,
    target_sampling: TargetSampling | None = None,
    power: float = 1.0,
    recent: PreparedDataset | None = None,
    risen: RisenItems | None = None,
) -> Tensor:
    """Return `log(p_recent(i)^power / p_trained(i))`; float64 [N + 1].

    A softmax over the corpus learns the posterior under the popularity of its targets. If only the prior moves (label
    shift), today's posterior is the learned one times the ratio of the priors (Saerens et al. 2002, equation 4). A
    power above 1 favours popular items beyond that, for data on which the model is too confident about users.

    An item without training events may be new, so its missing count says nothing about its popularity: its ratio is 1,
    and the power treats it like the item of an average recent event (the mean of `log p_recent` over those events).
    If it is one of the risen items, `p_trained` is the share that the model gives it. Its recent popularity is then
    relative to the events that it could have had: with n its share of the recent events, m the share of the recent
    events in its life, and k = `EVIDENCE`, it is `n (1 + k) / (m + k)`.

    Args:
        dataset: training events, with time in seconds or days.
        half_life_days: age at which an event counts half in `p_recent`.
        target_sampling: weights of the targets in training; None for equal weights.
        power: exponent of the recent popularity.
        recent: data whose training events give `p_recent`; None for `dataset`.
        risen: items with events of a positive weight in `recent`, but none in `dataset`; None for none.

    Raises:
        UnsuitableDataError: If the timestamps cannot be counted in days, or the events are those of one process.
    """
    if not dataset.meta.time_resolution.has_clock:
        raise UnsuitableDataError(
            f"model.prior_shift with data.time={dataset.meta.time_resolution}: "
            "expected weight 0, or timestamps in seconds or days"
        )
    dataset.needs_all_users()
    target_sampling = target_sampling or TargetSampling()
    trained = _shares(dataset, training_positions(dataset), weights=TargetWeights(dataset, target_sampling))
    newest = recent or dataset
    positions = training_positions(newest)
    weights = TargetWeights(newest, dataclasses.replace(target_sampling, half_life_days=half_life_days))
    now = _shares(newest, positions, weights=weights)
    if risen is not None:
        life = _shares_in_life(newest, positions, weights=weights, items=risen.items)
        now[risen.items] *= (1 + EVIDENCE) / (life + EVIDENCE)
    smoothed = (1 - SMOOTHING) * now + SMOOTHING * trained
    if risen is not None:
        trained[risen.items] = risen.shares
    known = trained > 0
    average = torch.special.entr(smoothed).sum().neg()
    lean = (power - 1) * torch.where(known, smoothed.log(), average)
    return torch.where(known, (smoothed / trained).log(), 0.0) + lean


def _shares(dataset: PreparedDataset, positions: Int64Array, *, weights: TargetWeights) -> Tensor:
    """Return the share of each item in the weight of some events; float64 [N + 1]."""
    weight = weights(positions)
    items = np.asarray(dataset.item_idx[positions])
    counts = np.bincount(items, None if weight is None else weight.numpy(), minlength=dataset.num_items + 1)
    return torch.from_numpy(counts / counts.sum())


def _shares_in_life(
    dataset: PreparedDataset, positions: Int64Array, *, weights: TargetWeights, items: Int64Array
) -> Tensor:
    """Return the share of the weight of some events that fell into the life of each of some items; float64 [R].

    A life begins with the birth of the item, or with its first event of a positive weight if it has no birth.
    """
    weight = weights(positions)
    assert weight is not None, "recent events are weighted by their age"
    time, counted = np.asarray(dataset.time[positions]), weight.numpy() > 0
    begin = np.full(dataset.num_items + 1, np.iinfo(np.int64).max)
    np.minimum.at(begin, np.asarray(dataset.item_idx[positions[counted]]), time[counted])
    if dataset.born is not None:
        begin = np.where(dataset.born == NO_BIRTH, begin, dataset.born)
    begins, place = np.unique(begin[items], return_inverse=True)
    # The weight of the events from one begin to the next, and before the first one.
    between = np.bincount(np.searchsorted(begins, time, side="right"), weight.numpy(), minlength=len(begins) + 1)
    since = between[::-1].cumsum()[::-1]
    return torch.from_numpy(since[1:][place] / since[0])


def training_positions(dataset: PreparedDataset) -> Int64Array:
    """Return the positions of the training events of all users."""
    return ragged_positions(dataset.offsets[:-1], dataset.train_end - dataset.offsets[:-1])


def _first_baskets(
    dataset: PreparedDataset, users: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    begin, end = dataset.offsets[users], dataset.train_end[users]
    if not dataset.meta.time_resolution.has_order:
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
