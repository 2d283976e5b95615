"""What losses over sampled candidates take, and how their rows count.

Shapes: P rows (targets), C candidates, D dim, H histories.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class SampledCandidates(NamedTuple):
    """Candidates of a step and what a correction needs to know of them.

    Attributes:
        embeddings: [C, D].
        log_q: [C], log probability that one draw is the candidate.
        log_q_target: [P], the same of each row's target.
        mask: bool [H, C], candidates that are no negatives of the history's user.
        q_masked: [H], probability that one draw is masked.
        num_drawn: [H], n, candidates that were drawn and are not masked; what a history brings itself is not drawn.
        history: int64 [P], the history of each row.
        hardest: candidates that a row keeps, those that score best; null for all.
    """

    embeddings: Tensor
    log_q: Tensor
    log_q_target: Tensor
    mask: Tensor
    q_masked: Tensor
    num_drawn: Tensor
    history: Tensor
    hardest: int | None = None


class SampledLoss(Protocol):
    """A loss of one positive a row against the candidates of the step. A `torch.nn.Module`."""

    def __call__(
        self, users: Tensor, positives: Tensor, sampled: SampledCandidates, weight: Tensor | None = None
    ) -> Tensor:
        """Mean loss of P rows.

        Args:
            users: [P, D], user embeddings divided by the temperature.
            positives: [P, D], embeddings of the targets.
            sampled: the candidates.
            weight: [P], what each row counts; null for all alike.
        """
        ...


def shares(users: Tensor, weight: Tensor | None) -> Tensor:
    """What each row of `users` [P, D] adds to the mean; [P]. Rows that weigh nothing together add nothing."""
    if weight is None:
        return torch.full_like(users[:, 0], 1.0 / max(len(users), 1))
    return weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
