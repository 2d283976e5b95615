"""What of the candidates is no negative of a user, and what that leaves of a proposal.

Shapes: H histories, C candidates, M items of all histories.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.data.batches.batch import RaggedTensor


def positives_among(candidates: Tensor, positives: RaggedTensor) -> Tensor:
    """Where a candidate is one of the history's own positives: bool [H, C].

    Covers accidental hits as well: a target is a training item of its own user.
    """
    order = candidates.argsort()
    ordered = candidates[order]
    lengths = positives.offsets.diff()
    history = rows_of(positives)
    left = torch.searchsorted(ordered, positives.values)
    counts = torch.searchsorted(ordered, positives.values, right=True) - left
    # A positive may stand in several columns; they are neighbours in `ordered`.
    run = torch.arange(int(counts.sum()), device=counts.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    mask = torch.zeros(len(lengths), len(candidates), dtype=torch.bool, device=candidates.device)
    mask[history.repeat_interleave(counts), order[left.repeat_interleave(counts) + run]] = True
    return mask


def probability_of_positives(log_q: Tensor, positives: RaggedTensor) -> Tensor:
    """Probability that one draw is a positive of the history's user; float32 [H].

    Args:
        log_q: [M] of `positives.values`.
        positives: items of H users, repeats allowed (they count once).
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
    """`-log(n Q'(d) / Q(d))` for each history, with `Q'(d) = Q(d) / (1 - Q(masked))`; float32 [H].

    Args:
        q_masked: [H], probability that one draw is masked.
        num_drawn: [H], n: candidates that were drawn and are not masked.
    """
    return torch.log1p(-q_masked.clamp(max=1 - 1e-6)) - num_drawn.clamp(min=1).log()


def merge_rows(one: RaggedTensor, other: RaggedTensor) -> RaggedTensor:
    """The rows of both, each row of `one` before that of `other`."""
    rows = torch.cat([rows_of(one), rows_of(other)])
    order = rows.argsort(stable=True)
    return RaggedTensor(torch.cat([one.values, other.values])[order], one.offsets + other.offsets)


def rows_of(ragged: RaggedTensor) -> Tensor:
    """The row that each value belongs to; int64 [M]."""
    lengths = ragged.offsets.diff()
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
