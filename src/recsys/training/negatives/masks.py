"""Masks of candidates that are positives of a user, and the probabilities that remain for the others.

Shapes: U users, H histories, C candidates, M items of all users.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.data.batches.batch import RaggedTensor


def positives_among(candidates: Tensor, positives: RaggedTensor) -> Tensor:
    """Return a mask bool [U, C] of the candidates that are among the positives of each user.

    Accidental hits are masked too, because a target is a training item of its own user.
    """
    order = candidates.argsort()
    ordered = candidates[order]
    user = rows_of(positives)
    left = torch.searchsorted(ordered, positives.values)
    counts = torch.searchsorted(ordered, positives.values, right=True) - left
    # A positive may be in several columns, which are adjacent in `ordered`.
    run = torch.arange(int(counts.sum()), device=counts.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    num_users = len(positives.offsets) - 1
    mask = torch.zeros(num_users, len(candidates), dtype=torch.bool, device=candidates.device)
    mask[user.repeat_interleave(counts), order[left.repeat_interleave(counts) + run]] = True
    return mask


def probability_of_positives(log_q: Tensor, positives: RaggedTensor) -> Tensor:
    """Return, for each user, the probability that a sampled item is one of the user's positives; float32 [U].

    Args:
        log_q: [M], log probability of each of `positives.values`.
        positives: items of U users, each once.
    """
    nothing = torch.zeros(len(positives.offsets) - 1, device=log_q.device)
    return nothing.index_add_(0, rows_of(positives), log_q.exp())


def renormalisation(q_masked: Tensor, num_drawn: Tensor) -> Tensor:
    """Return `-log(n Q'(d) / Q(d))` for each history, where `Q'(d) = Q(d) / (1 - Q(masked))`; float32 [H].

    Args:
        q_masked: [H], probability that one draw is masked.
        num_drawn: [H], n, the number of candidates that were drawn and are not masked.
    """
    return torch.log1p(-q_masked.clamp(max=1 - 1e-6)) - num_drawn.clamp(min=1).log()


def rows_of(ragged: RaggedTensor) -> Tensor:
    """Return the row that each value belongs to; int64 [M]."""
    lengths = ragged.offsets.diff()
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
