"""Losses: tensors in, mean-reduced scalar out.

All are cross entropies of one positive against candidates; they differ in the candidates and in the correction for how
probable each candidate was. Shapes: P rows (targets), C candidates, D dim, H histories.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LogQ = Literal["off", "classic", "corrected"]

# A block of logits near the size of common last-level caches: smaller ones make the matrix products slower (by 15% at
# 4 MiB on 2 cores), larger ones gain nothing.
BLOCK_BYTES = 12 << 20


class Sampled(NamedTuple):
    """Candidates of a step and what a correction needs to know of them.

    Attributes:
        embeddings: [C, D].
        log_q: [C], log probability that one draw is the candidate.
        log_q_target: [P], the same of each row's target.
        mask: bool [H, C], candidates that are positives of the history's user.
        q_masked: [H], probability that one draw is masked.
        history: int64 [P], the history of each row.
    """

    embeddings: Tensor
    log_q: Tensor
    log_q_target: Tensor
    mask: Tensor
    q_masked: Tensor
    history: Tensor


class SampledSoftmax(nn.Module):
    """Softmax over the positive and sampled candidates, with logQ correction.

    `off`: cross entropy over `[s_p, s_d]`.
    `classic`: `s_j - log Q(j)` on every column, the positive's too (Yi et al. 2019, section 3).
    `corrected`: the positive is not sampled, so it is neither corrected nor part of the sampled sum: cross entropy over
    `[s_p, s_d - log(n Q'(d))]`, with n the candidates that are not masked and `Q'(d) = Q(d) / (1 - Q(masked))`
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

    def forward(self, users: Tensor, positives: Tensor, sampled: Sampled, weight: Tensor | None = None) -> Tensor:
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
            num_drawn = (~sampled.mask).sum(1).clamp(min=1)
            correction = torch.log1p(-sampled.q_masked.clamp(max=1 - 1e-6)) - num_drawn.log()
            row_bias = correction[sampled.history]
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
            users, items, None, self._buffer, None, None, None, None, labels, weight
        )
        return loss


class Buffer:
    """Memory for one block of logits, kept from step to step: fresh pages cost more than the arithmetic on them."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def block(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """An uninitialised [rows, columns] tensor of the type and on the device of `like`."""
        memory = self._memory
        if (
            memory is None
            or memory.numel() < rows * columns
            or memory.device != like.device
            or memory.dtype != like.dtype
        ):
            memory = self._memory = torch.empty(rows * columns, dtype=like.dtype, device=like.device)
        return memory[: rows * columns].view(rows, columns)


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
    """
    loss: Tensor = _SoftmaxLoss.apply(  # type: ignore[no-untyped-call]
        users, items, positive_logits, buffer, bias, row_bias, mask, history, labels, weight
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
    ) -> Tensor:
        num_rows, num_columns = len(users), len(items)
        # What each row adds to the mean.
        part = torch.full_like(users[:, 0], 1.0 / max(num_rows, 1)) if weight is None else weight / weight.sum()
        # On a GPU larger blocks are better, and still small beside the whole matrix.
        block_bytes = BLOCK_BYTES if users.device.type == "cpu" else 16 * BLOCK_BYTES
        height = max(16, min(num_rows, block_bytes // (4 * max(num_columns, 1))))
        # Blocks of one height: a low last one would be slow.
        height = max(-(-num_rows // -(-num_rows // height)), 1) if num_rows else height
        losses = torch.empty(num_rows, dtype=users.dtype, device=users.device)
        user_gradient, item_gradient = torch.empty_like(users), torch.zeros_like(items)
        positive_gradient = None if positive_logits is None else torch.empty_like(losses)
        transposed = items.t()
        lowest = torch.finfo(users.dtype).min / 2
        for begin in range(0, num_rows, height):
            rows = slice(begin, min(begin + height, num_rows))
            block = buffer.block(rows.stop - begin, num_columns, users)
            if bias is None:
                torch.mm(users[rows], transposed, out=block)
            else:
                torch.addmm(bias, users[rows], transposed, out=block)
            if mask is not None and history is not None:
                block.masked_fill_(mask.index_select(0, history[rows]), lowest)
            columns = None if labels is None else labels[rows].unsqueeze(1)
            if columns is not None and positive_logits is None:
                own = block.gather(1, columns)
            elif columns is not None:
                block.scatter_(1, columns, lowest)
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
        return (*scaled, *([None] * 7))
