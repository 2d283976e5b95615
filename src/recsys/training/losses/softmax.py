"""Softmax losses of one positive against sampled candidates or against the whole corpus.

Shapes: P rows (targets), C candidates, D dim, H histories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.core.errors import UserError
from recsys.models.priors import PriorTerms
from recsys.training.losses.blocks import Buffer, blocks, lowest
from recsys.training.losses.sampled import SampledCandidates, check_sampler, shares
from recsys.training.negatives import NegativeSampler, renormalisation

LogQ = Literal["off", "classic", "corrected"]


class SampledSoftmax(nn.Module):
    """Softmax over the positive and sampled candidates, with logQ correction.

    `off`: cross entropy over `[s_p, s_d]`.
    `classic`: `s_j - log Q(j)` in every column, the positive's too (Yi et al. 2019, section 3).
    `corrected`: cross entropy over `[s_p, s_d - log(n Q'(d))]`, where n is the number of draws that are not masked and
    `Q'(d) = Q(d) / (1 - Q(masked))`. The positive is not sampled, so it is neither corrected nor part of the sampled
    sum (arXiv 2507.09331; the gradient is that of the paper's equation 9 with the weight `1 - P(p | u)`).

    Args:
        logq: `off`, `classic` or `corrected`.
    """

    reads_corpus: Literal[False] = False
    takes_priors = True

    def __init__(self, logq: LogQ = "corrected") -> None:
        super().__init__()
        if logq not in ("off", "classic", "corrected"):
            raise ValueError(f"logq: found '{logq}', expected 'off', 'classic' or 'corrected'")
        self.logq = logq
        self._buffer = Buffer()

    def check_negatives(self, negatives: NegativeSampler | None) -> None:
        """Raise a `UserError` if there is no sampler."""
        check_sampler(negatives)

    def forward(
        self, users: Tensor, positives: Tensor, *, sampled: SampledCandidates, weight: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss of P rows; see `SampledLoss`."""
        positive_logits = (users * positives).sum(1)
        if sampled.prior is not None:
            positive_logits = positive_logits + sampled.prior.positive
        bias, row_bias = None, None
        if self.logq == "classic":
            positive_logits = positive_logits - sampled.log_q_target
            bias = -sampled.log_q
        elif self.logq == "corrected":
            bias = -sampled.log_q
            row_bias = renormalisation(sampled.q_masked, sampled.num_drawn)[sampled.history]
        terms = SoftmaxTerms(
            bias=bias,
            row_bias=row_bias,
            mask=sampled.mask,
            history=sampled.history,
            weight=weight,
            group=None if sampled.prior is None else sampled.prior.group,
        )
        return softmax_loss(
            users,
            sampled.embeddings,
            positive_logits=positive_logits,
            terms=terms,
            buffer=self._buffer,
            prior=None if sampled.prior is None else sampled.prior.table,
        )


class FullSoftmax(nn.Module):
    """Cross entropy over the whole corpus, `-log(e^(u.v_p) / sum_i e^(u.v_i))`."""

    reads_corpus: Literal[True] = True
    takes_priors = True

    def __init__(self) -> None:
        super().__init__()
        self._buffer = Buffer()

    def check_negatives(self, negatives: NegativeSampler | None) -> None:
        """Raise a `UserError` if there is a sampler."""
        if negatives is not None:
            raise UserError("loss=full_softmax ranges over the whole corpus: add negatives=none")

    def forward(
        self,
        users: Tensor,
        items: Tensor,
        *,
        labels: Tensor,
        weight: Tensor | None = None,
        prior: PriorTerms | None = None,
    ) -> Tensor:
        """Return the mean loss of P rows; see `CorpusLoss`. `prior`: item priors of the corpus and of the targets."""
        if prior is None:
            terms = SoftmaxTerms(labels=labels, weight=weight)
            return softmax_loss(users, items, positive_logits=None, terms=terms, buffer=self._buffer)
        # The positive is its own term, because its column may be masked for targets of the same hours.
        positive_logits = (users * F.embedding(labels, items)).sum(1) + prior.positive
        terms = SoftmaxTerms(labels=labels, weight=weight, group=prior.group)
        return softmax_loss(
            users, items, positive_logits=positive_logits, terms=terms, buffer=self._buffer, prior=prior.table
        )


@dataclass(frozen=True, kw_only=True)
class SoftmaxTerms:
    """Terms and weights of a softmax loss.

    Attributes:
        bias: [C], added to columns.
        row_bias: [P], added to all negatives of a row.
        mask: bool [H, C], columns left out of the rows of a history.
        history: int64 [P], row of `mask` for each row.
        labels: int64 [P], the column of each row's positive, which is left out of the negatives.
        weight: [P], weight of each row in the mean; None for equal weights.
        group: int64 [P], row of the priors for each row; None without priors.
    """

    bias: Tensor | None = None
    row_bias: Tensor | None = None
    mask: Tensor | None = None
    history: Tensor | None = None
    labels: Tensor | None = None
    weight: Tensor | None = None
    group: Tensor | None = None


def softmax_loss(
    users: Tensor,
    items: Tensor,
    *,
    positive_logits: Tensor | None,
    terms: SoftmaxTerms,
    buffer: Buffer,
    prior: Tensor | None = None,
) -> Tensor:
    """Return the weighted mean of `-log(e^p / (e^p + sum_c e^(u.v_c + bias_c + row_bias)))`, p the positive's logit.

    Logits exist in one cache-sized block at a time, and the gradient is computed in the same pass. A block takes three
    matrix products without recomputation, and memory does not grow with P x C.

    Args:
        users: [P, D].
        items: [C, D].
        positive_logits: [P]; None if the positive is the labelled column, which then gets its gradient too.
        terms: biases, masks and weights.
        buffer: memory to reuse.
        prior: [G, C], added to the columns of rows of each group, with `positive_logits`; None for none.
    """
    loss: Tensor = _SoftmaxLoss.apply(  # type: ignore[no-untyped-call]
        users, items, positive_logits, prior, terms, buffer
    )
    return loss


# Share of masked logits from which their exponentials are skipped on a CPU.
SKIP_FROM = 0.1
# Every float32 below it has the exponential zero.
ZERO_BELOW = -104.0


def exp_(block: Tensor, *, skips: bool) -> Tensor:
    """Replace logits by their exponentials.

    Args:
        block: logits, at most 0.
        skips: leave out those whose exponential is zero. One of them takes a CPU twenty times as long as another logit,
            and the further passes take as long as a tenth of the logits.
    """
    if not skips:
        return block.exp_()
    is_zero = block < ZERO_BELOW
    return block.masked_fill_(is_zero, 0.0).exp_().masked_fill_(is_zero, 0.0)


def _hidden_share(terms: SoftmaxTerms) -> float:
    if terms.mask is None or terms.history is None:
        return 0.0
    return float(terms.mask.float().mean(1)[terms.history].mean())


class _SoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        positive_logits: Tensor | None,
        prior: Tensor | None,
        terms: SoftmaxTerms,
        buffer: Buffer,
    ) -> Tensor:
        bias, mask, history = terms.bias, terms.mask, terms.history
        num_rows, num_columns = len(users), len(items)
        part = shares(users, terms.weight)
        losses = torch.empty(num_rows, dtype=users.dtype, device=users.device)
        user_gradient, item_gradient = torch.empty_like(users), torch.zeros_like(items)
        positive_gradient = None if positive_logits is None else torch.empty_like(losses)
        prior_gradient = None if prior is None else torch.zeros_like(prior)
        transposed = items.t()
        least = lowest(users)
        can_skip = users.device.type == "cpu" and users.dtype == torch.float32
        hidden = _hidden_share(terms) + (0.0 if prior is None else float((prior < ZERO_BELOW).float().mean()))
        skips = can_skip and hidden > SKIP_FROM
        for rows in blocks(num_rows, num_columns, device=users.device):
            block = buffer.block(rows.stop - rows.start, num_columns, like=users)
            if bias is None:
                torch.mm(users[rows], transposed, out=block)
            else:
                torch.addmm(bias, users[rows], transposed, out=block)
            if prior is not None and terms.group is not None:
                block.add_(prior.index_select(0, terms.group[rows]))
            if mask is not None and history is not None:
                block.masked_fill_(mask.index_select(0, history[rows]), least)
            columns = None if terms.labels is None else terms.labels[rows].unsqueeze(1)
            if columns is not None and positive_logits is None:
                own = block.gather(1, columns)
            elif columns is not None:
                block.scatter_(1, columns, least)
            highest = block.amax(1, keepdim=True)
            exp_(block.sub_(highest), skips=skips)
            total = block.sum(1, keepdim=True)
            log_sum = total.log().add_(highest)
            if positive_logits is None or positive_gradient is None:
                assert columns is not None
                losses[rows] = (log_sum - own).squeeze(1)
                # d loss / d logit = softmax, less one for the positive. The row's factor goes into the smaller matrix.
                factor = part[rows].unsqueeze(1) / total
                block.scatter_add_(1, columns, -total)
            else:
                excess = log_sum.squeeze(1)
                if terms.row_bias is not None:
                    excess += terms.row_bias[rows]
                excess -= positive_logits[rows]
                losses[rows] = F.softplus(excess)
                # d loss / d logit = sigmoid(excess) * softmax.
                share = excess.sigmoid_().mul_(part[rows])
                torch.neg(share, out=positive_gradient[rows])
                factor = share.unsqueeze(1) / total
            torch.mm(block, items, out=user_gradient[rows]).mul_(factor)
            item_gradient.addmm_(block.t(), users[rows] * factor)
            if prior_gradient is not None and terms.group is not None:
                prior_gradient.index_add_(0, terms.group[rows], block.mul_(factor))
        ctx.save_for_backward(user_gradient, item_gradient, positive_gradient, prior_gradient)
        return losses @ part

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if saved is None else saved * gradients[0] for saved in ctx.saved_tensors]
        return (*scaled, None, None)
