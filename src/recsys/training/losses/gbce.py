"""Binary cross entropy with positives calibrated for sampled negatives.

Shapes: P rows (targets), C candidates, D dim, H histories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.core.errors import UserError
from recsys.training.losses.blocks import Buffer, blocks, lowest
from recsys.training.losses.sampled import SampledCandidates, check_sampler, shares
from recsys.training.negatives import NegativeSampler


class GBCE(nn.Module):
    """Generalised binary cross entropy for uniform negatives (gSASRec, Petrov and Macdonald 2023, section 5).

    With k negatives of a row the loss is `-(1 / (k + 1)) (beta log sigmoid(s_p) + sum_d log(1 - sigmoid(s_d)))`, where
    k counts the candidates of the row that are not masked. Sampling leaves most negatives out, so plain binary cross
    entropy (beta 1) predicts probabilities that are too high. With `beta = alpha (t (1 - 1 / alpha) + 1 / alpha)`,
    where alpha is the sampled share of the negatives, `t = 1` corrects this in full and `t = 0` not at all.

    Args:
        num_items: number of items that negatives are drawn from, N.
        calibration: t, between 0 and 1.
    """

    reads_corpus: Literal[False] = False

    def __init__(self, num_items: int, calibration: float = 0.75) -> None:
        super().__init__()
        if not 0 <= calibration <= 1:
            raise ValueError(f"calibration: found {calibration}, expected a number between 0 and 1")
        self.num_items, self.calibration = num_items, calibration
        self._blocks = Buffer(), Buffer()

    def check_negatives(self, negatives: NegativeSampler | None) -> None:
        """Raise a `UserError` unless negatives are drawn uniformly."""
        if not check_sampler(negatives).is_uniform:
            raise UserError("loss=gbce is calibrated for uniform draws: add negatives=uniform")

    def forward(
        self, users: Tensor, positives: Tensor, *, sampled: SampledCandidates, weight: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss of P rows; see `SampledLoss`."""
        num_negatives = (~sampled.mask).sum(1)[sampled.history]
        alpha = num_negatives / max(self.num_items - 1, 1)
        # This form of alpha (t (1 - 1 / alpha) + 1 / alpha) is finite for a row without negatives.
        beta = (self.calibration * (alpha - 1.0) + 1.0).clamp(max=1.0)
        share = shares(users, weight) / (num_negatives + 1)
        positive = beta * F.softplus(-(users * positives).sum(1))
        terms = _Terms(sampled.mask, sampled.history, share=share)
        negative: Tensor = _NegativeLoss.apply(  # type: ignore[no-untyped-call]
            users, sampled.embeddings, terms, self._blocks
        )
        return positive @ share + negative


@dataclass(frozen=True)
class _Terms:
    """Columns and weights of the rows: mask bool [H, C], history int64 [P] (row of the mask), share [P]."""

    mask: Tensor
    history: Tensor
    share: Tensor


class _NegativeLoss(torch.autograd.Function):
    """`sum_p share_p sum_c softplus(u_p . v_c)` without masked columns; gradients are computed with each block."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, terms: _Terms, buffers: tuple[Buffer, Buffer]) -> Tensor:
        share = terms.share
        losses = torch.empty_like(share)
        user_gradient, item_gradient = torch.empty_like(users), torch.zeros_like(items)
        transposed, zero = items.t(), users.new_zeros(())
        for rows in blocks(len(users), len(items), device=users.device):
            first, second = (buffer.block(rows.stop - rows.start, len(items), like=users) for buffer in buffers)
            block = torch.mm(users[rows], transposed, out=first)
            block.masked_fill_(terms.mask.index_select(0, terms.history[rows]), lowest(users))
            # softplus(s) = -log(1 - sigmoid(s)), and its derivative is sigmoid(s).
            losses[rows] = torch.logaddexp(block, zero, out=second).sum(1)
            block.sigmoid_()
            factor = share[rows].unsqueeze(1)
            torch.mm(block, items, out=user_gradient[rows]).mul_(factor)
            item_gradient.addmm_(block.t(), users[rows] * factor)
        ctx.save_for_backward(user_gradient, item_gradient)
        return losses @ share

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        users, items = (saved * gradients[0] for saved in ctx.saved_tensors)
        return users, items, None, None
