"""Binary cross entropy whose positives are calibrated for the sampling of the negatives.

Shapes: P rows (targets), C candidates, D dim, H histories.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.training.losses.blocks import Buffer, blocks, lowest
from recsys.training.losses.sampled import SampledCandidates, shares


class GBCE(nn.Module):
    """Generalised binary cross entropy, for negatives drawn uniformly (gSASRec, Petrov and Macdonald 2023, section 5).

    With k negatives of a row it is `-(1 / (k + 1)) (beta log sigmoid(s_p) + sum_d log(1 - sigmoid(s_d)))`. Sampling
    leaves most negatives out, so plain binary cross entropy (beta 1) predicts probabilities that are too high. With
    `beta = alpha (t (1 - 1 / alpha) + 1 / alpha)`, alpha the share of the negatives that is sampled, `t = 1` undoes
    that in full and `t = 0` not at all. k counts the candidates of a row that are not masked.

    Args:
        num_items: N, items that negatives are drawn from.
        calibration: t, between 0 and 1.
    """

    def __init__(self, num_items: int, calibration: float = 0.75) -> None:
        super().__init__()
        if not 0 <= calibration <= 1:
            raise ValueError(f"calibration: found {calibration}, expected a number between 0 and 1")
        self.num_items, self.calibration = num_items, calibration
        self._blocks = Buffer(), Buffer()

    def forward(
        self, users: Tensor, positives: Tensor, sampled: SampledCandidates, weight: Tensor | None = None
    ) -> Tensor:
        """Mean loss of P rows; see `SampledLoss`."""
        num_negatives = (~sampled.mask).sum(1)[sampled.history]
        alpha = num_negatives / max(self.num_items - 1, 1)
        # alpha (t (1 - 1 / alpha) + 1 / alpha), finite for a row without negatives.
        beta = (self.calibration * (alpha - 1.0) + 1.0).clamp(max=1.0)
        share = shares(users, weight) / (num_negatives + 1)
        positive = beta * F.softplus(-(users * positives).sum(1))
        negative: Tensor = _NegativeLoss.apply(  # type: ignore[no-untyped-call]
            users, sampled.embeddings, sampled.mask, sampled.history, share, *self._blocks
        )
        return positive @ share + negative


class _NegativeLoss(torch.autograd.Function):
    """`sum_p share_p sum_c softplus(u_p . v_c)` without masked columns, block by block with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        mask: Tensor,
        history: Tensor,
        share: Tensor,
        buffer: Buffer,
        other: Buffer,
    ) -> Tensor:
        losses = torch.empty_like(share)
        user_gradient, item_gradient = torch.empty_like(users), torch.zeros_like(items)
        transposed, zero = items.t(), users.new_zeros(())
        for rows in blocks(len(users), len(items), users.device):
            height = rows.stop - rows.start
            block = torch.mm(users[rows], transposed, out=buffer.block(height, len(items), users))
            block.masked_fill_(mask.index_select(0, history[rows]), lowest(users))
            # softplus(s) = -log(1 - sigmoid(s)), and its derivative is sigmoid(s).
            losses[rows] = torch.logaddexp(block, zero, out=other.block(height, len(items), users)).sum(1)
            block.sigmoid_()
            factor = share[rows].unsqueeze(1)
            torch.mm(block, items, out=user_gradient[rows]).mul_(factor)
            item_gradient.addmm_(block.t(), users[rows] * factor)
        ctx.save_for_backward(user_gradient, item_gradient)
        return losses @ share

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        users, items = (saved * gradients[0] for saved in ctx.saved_tensors)
        return (users, items, *([None] * 5))
