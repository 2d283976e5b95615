"""Protocols of losses, the candidates of sampled losses, and the weights of rows.

Shapes: P rows (targets), C candidates, D dim, H histories.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from recsys.core.errors import UserError
from recsys.models.priors import PriorTerms
from recsys.training.negatives import NegativeSampler


class SampledCandidates(NamedTuple):
    """Candidates of a step, with the probabilities that a logQ correction needs.

    Attributes:
        embeddings: [C, D].
        log_q: [C], log probability that one draw is the candidate.
        log_q_target: [P], log probability that one draw is the row's target.
        mask: bool [H, C], candidates that are not negatives of the history's user.
        q_masked: [H], probability that one draw is masked.
        num_drawn: [H], n, candidates that were drawn and are not masked. Exposures of a history are not drawn.
        history: int64 [P], the history of each row.
        prior: item priors of the candidates and targets, which a loss with `takes_priors` adds; None for none.
    """

    embeddings: Tensor
    log_q: Tensor
    log_q_target: Tensor
    mask: Tensor
    q_masked: Tensor
    num_drawn: Tensor
    history: Tensor
    prior: PriorTerms | None = None


class SampledLoss(Protocol):
    """A loss of one positive a row against the candidates of the step. A `torch.nn.Module`.

    Attributes:
        reads_corpus: False, because the loss takes sampled candidates.
        takes_priors: True if the loss adds `SampledCandidates.prior` to logits; may be missing.
    """

    reads_corpus: Literal[False]

    def check_negatives(self, negatives: NegativeSampler | None) -> None:
        """Raise a `UserError` if the loss does not work with these negatives; `check_sampler` refuses none at all."""
        ...

    def __call__(
        self, users: Tensor, positives: Tensor, *, sampled: SampledCandidates, weight: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss of P rows.

        Args:
            users: [P, D], user embeddings divided by the temperature.
            positives: [P, D], embeddings of the targets.
            sampled: candidates of the step.
            weight: [P], weight of each row in the mean; None for equal weights.
        """
        ...


class CorpusLoss(Protocol):
    """A loss of one positive a row against the whole corpus. A `torch.nn.Module`.

    Attributes:
        reads_corpus: True, because every step computes the embeddings of all items.
        takes_priors: True if the loss has the argument `prior`; may be missing.
    """

    reads_corpus: Literal[True]

    def check_negatives(self, negatives: NegativeSampler | None) -> None:
        """Raise a `UserError` if there is a sampler of negatives."""
        ...

    def __call__(
        self,
        users: Tensor,
        items: Tensor,
        *,
        labels: Tensor,
        weight: Tensor | None = None,
        prior: PriorTerms | None = None,
    ) -> Tensor:
        """Return the mean loss of P rows.

        Args:
            users: [P, D], user embeddings divided by the temperature.
            items: [N, D], embeddings of the corpus.
            labels: int64 [P], row of each target in `items`.
            weight: [P], weight of each row in the mean; None for equal weights.
            prior: item priors of the corpus and of the targets; only given to a loss with `takes_priors`.
        """
        ...


def check_sampler(negatives: NegativeSampler | None) -> NegativeSampler:
    """Return the sampler of a sampled loss, or raise a `UserError` if there is none."""
    if negatives is None:
        raise UserError("negatives=none is valid only with loss=full_softmax; this loss needs sampled negatives")
    return negatives


def shares(users: Tensor, weight: Tensor | None) -> Tensor:
    """Return the factor [P] of each row of `users` [P, D] in the mean; zeros if the weights add up to zero."""
    if weight is None:
        return torch.full_like(users[:, 0], 1.0 / max(len(users), 1))
    return weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
