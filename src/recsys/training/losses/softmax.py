"""Cross entropies of one positive against candidates, sampled or all.

Shapes: P rows (targets), C candidates, D dim, H histories.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.training.losses.blocks import Buffer, blocks, lowest
from recsys.training.losses.sampled import SampledCandidates, shares
from recsys.training.negatives import renormalisation

LogQ = Literal["off", "classic", "corrected"]


class SampledSoftmax(nn.Module):
    """Softmax over the positive and sampled candidates, with logQ correction.

    `off`: cross entropy over `[s_p, s_d]`.
    `classic`: `s_j - log Q(j)` on every column, the positive's too (Yi et al. 2019, section 3).
    `corrected`: the positive is not sampled, so it is neither corrected nor part of the sampled sum: cross entropy over
    `[s_p, s_d - log(n Q'(d))]`, with n the draws that are not masked and `Q'(d) = Q(d) / (1 - Q(masked))`
    (arXiv 2507.09331; its gradient is that of the paper's equation 9 with the weight `1 - P(p | u)`).

    Args:
        logq: `off`, `classic` or `corrected`.
    """

    def __init__(self, logq: LogQ = "corrected") -> None:
        super().__init__()
        if logq not in ("off", "classic", "corrected"):
            raise ValueError(f"logq: found '{logq}', expected 'off', 'classic' or 'corrected'")
        self.logq = logq
        self._buffer = Buffer()

    def forward(
        self, users: Tensor, positives: Tensor, sampled: SampledCandidates, weight: Tensor | None = None
    ) -> Tensor:
        """Mean loss of P rows.

        Args:
            users: [P, D], user embeddings divided by the temperature.
            positives: [P, D], embeddings of the targets.
            sampled: the candidates.
            weight: [P], what each row counts; null for all alike.
        """
        positive_logits = (users * positives).sum(1)
        bias, row_bias = None, None
        if self.logq == "classic":
            positive_logits = positive_logits - sampled.log_q_target
            bias = -sampled.log_q
        elif self.logq == "corrected":
            bias = -sampled.log_q
            row_bias = renormalisation(sampled.q_masked, sampled.num_drawn)[sampled.history]
        return softmax_loss(
            users,
            sampled.embeddings,
            positive_logits,
            self._buffer,
            bias=bias,
            row_bias=row_bias,
            mask=sampled.mask,
            history=sampled.history,
            weight=weight,
            hardest=sampled.hardest,
        )


class FullSoftmax(nn.Module):
    """Cross entropy over the whole corpus."""

    def __init__(self) -> None:
        super().__init__()
        self._buffer = Buffer()

    def forward(self, users: Tensor, items: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean loss of P rows.

        Args:
            users: [P, D], user embeddings divided by the temperature.
            items: [N, D], embeddings of the corpus.
            labels: int64 [P], row of each target in `items`.
            weight: [P], what each row counts; null for all alike.
        """
        loss: Tensor = _SoftmaxLoss.apply(  # type: ignore[no-untyped-call]
            users, items, None, self._buffer, None, None, None, None, labels, weight, None
        )
        return loss


def softmax_loss(
    users: Tensor,
    items: Tensor,
    positive_logits: Tensor,
    buffer: Buffer,
    bias: Tensor | None = None,
    row_bias: Tensor | None = None,
    mask: Tensor | None = None,
    history: Tensor | None = None,
    labels: Tensor | None = None,
    weight: Tensor | None = None,
    hardest: int | None = None,
) -> Tensor:
    """Weighted mean of `-log(e^p / (e^p + sum_c e^(u.v_c + bias_c + row_bias)))`, p being the positive's logit.

    Logits exist in one cache-sized block at a time, and the gradient is computed with them in the same pass: three
    matrix products a block, no recomputation, and memory that does not grow with P x C.

    Args:
        users: [P, D].
        items: [C, D].
        positive_logits: [P].
        buffer: memory to reuse.
        bias: [C] added to columns.
        row_bias: [P] added to all negatives of a row.
        mask: bool [H, C], columns left out of the rows of a history.
        history: int64 [P], row of `mask` for each row.
        labels: int64 [P], one column left out of each row (the positive itself).
        weight: [P], what each row counts; null for all alike.
        hardest: columns that a row keeps, those of the highest `u.v_c`; null for all.
    """
    loss: Tensor = _SoftmaxLoss.apply(  # type: ignore[no-untyped-call]
        users, items, positive_logits, buffer, bias, row_bias, mask, history, labels, weight, hardest
    )
    return loss


class _SoftmaxLoss(torch.autograd.Function):
    """As `softmax_loss`; without positive logits the positive is the row's labelled column, and gets its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        positive_logits: Tensor | None,
        buffer: Buffer,
        bias: Tensor | None,
        row_bias: Tensor | None,
        mask: Tensor | None,
        history: Tensor | None,
        labels: Tensor | None,
        weight: Tensor | None,
        hardest: int | None,
    ) -> Tensor:
        num_rows, num_columns = len(users), len(items)
        selects = hardest is not None and hardest < num_columns
        part = shares(users, weight)
        losses = torch.empty(num_rows, dtype=users.dtype, device=users.device)
        user_gradient, item_gradient = torch.empty_like(users), torch.zeros_like(items)
        positive_gradient = None if positive_logits is None else torch.empty_like(losses)
        transposed = items.t()
        least = lowest(users)
        for rows in blocks(num_rows, num_columns, users.device):
            block = buffer.block(rows.stop - rows.start, num_columns, users)
            if bias is None or selects:
                torch.mm(users[rows], transposed, out=block)
            else:
                torch.addmm(bias, users[rows], transposed, out=block)
            if mask is not None and history is not None:
                block.masked_fill_(mask.index_select(0, history[rows]), least)
            columns = None if labels is None else labels[rows].unsqueeze(1)
            if columns is not None and positive_logits is None:
                own = block.gather(1, columns)
            elif columns is not None:
                block.scatter_(1, columns, least)
            if selects and hardest is not None:
                kept, at = block.topk(hardest, dim=1, sorted=False)
                block.fill_(least).scatter_(1, at, kept if bias is None else kept + bias[at])
            highest = block.amax(1, keepdim=True)
            block.sub_(highest).exp_()
            total = block.sum(1, keepdim=True)
            log_sum = total.log().add_(highest)
            if positive_logits is None or positive_gradient is None:
                assert columns is not None
                losses[rows] = (log_sum - own).squeeze(1)
                # d loss / d logit = softmax, less one for the positive; the row's factor goes into the smaller matrix.
                factor = part[rows].unsqueeze(1) / total
                block.scatter_add_(1, columns, -total)
            else:
                excess = log_sum.squeeze(1)
                if row_bias is not None:
                    excess += row_bias[rows]
                excess -= positive_logits[rows]
                losses[rows] = F.softplus(excess)
                # d loss / d logit = sigmoid(excess) * softmax.
                share = excess.sigmoid_().mul_(part[rows])
                torch.neg(share, out=positive_gradient[rows])
                factor = share.unsqueeze(1) / total
            torch.mm(block, items, out=user_gradient[rows]).mul_(factor)
            item_gradient.addmm_(block.t(), users[rows] * factor)
        ctx.save_for_backward(user_gradient, item_gradient, positive_gradient)
        return losses @ part

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if saved is None else saved * gradients[0] for saved in ctx.saved_tensors]
        return (*scaled, *([None] * 8))
