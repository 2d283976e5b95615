"""Masks of candidates that are positives of a user, and the probabilities that remain for the others.

Shapes: H histories, C candidates, M items of all histories.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.data.batches.batch import RaggedTensor


def positives_among(candidates: Tensor, positives: RaggedTensor) -> Tensor:
    """Return a mask bool [H, C] of the candidates that are positives of the history's own user.

    Accidental hits are masked too, because a target is a training item of its own user.
    """
    order = candidates.argsort()
    ordered = candidates[order]
    lengths = positives.offsets.diff()
    history = rows_of(positives)
    left = torch.searchsorted(ordered, positives.values)
    counts = torch.searchsorted(ordered, positives.values, right=True) - left
    # A positive may be in several columns, which are adjacent in `ordered`.
    run = torch.arange(int(counts.sum()), device=counts.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    mask = torch.zeros(len(lengths), len(candidates), dtype=torch.bool, device=candidates.device)
    mask[history.repeat_interleave(counts), order[left.repeat_interleave(counts) + run]] = True
    return mask


def probability_of_positives(log_q: Tensor, positives: RaggedTensor) -> Tensor:
    """Return the probability that one draw is a positive of the history's user; float32 [H].

    Args:
        log_q: [M], log probability of each of `positives.values`.
        positives: items of H users; a repeated item counts once.
    """
    num_histories = len(positives.offsets) - 1
    history = rows_of(positives)
    if len(history) == 0:
        return torch.zeros(num_histories, device=log_q.device)
    key = history * (int(positives.values.max()) + 1) + positives.values
    key, order = key.sort()
    fresh = torch.ones_like(key, dtype=torch.bool)
    fresh[1:] = key[1:] != key[:-1]
    probability = torch.where(fresh, log_q[order].exp(), 0.0)
    return torch.zeros(num_histories, device=log_q.device).index_add_(0, history[order], probability)


def renormalisation(q_masked: Tensor, num_drawn: Tensor) -> Tensor:
    """Return `-log(n Q'(d) / Q(d))` for each history, where `Q'(d) = Q(d) / (1 - Q(masked))`; float32 [H].

    Args:
        q_masked: [H], probability that one draw is masked.
        num_drawn: [H], n, the number of candidates that were drawn and are not masked.
    """
    return torch.log1p(-q_masked.clamp(max=1 - 1e-6)) - num_drawn.clamp(min=1).log()


def merge_rows(one: RaggedTensor, other: RaggedTensor) -> RaggedTensor:
    """Return the rows of both, each row of `one` followed by that of `other`."""
    rows = torch.cat([rows_of(one), rows_of(other)])
    order = rows.argsort(stable=True)
    return RaggedTensor(torch.cat([one.values, other.values])[order], one.offsets + other.offsets)


def rows_of(ragged: RaggedTensor) -> Tensor:
    """Return the row that each value belongs to; int64 [M]."""
    lengths = ragged.offsets.diff()
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
