"""The candidates of a step for the losses: drawn items, and exposures of each history.

Shapes: P rows (targets), C candidates, X exposures of the batch, D dim, H histories.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.data.batches.batch import Batch, RaggedTensor
from recsys.training.losses import SampledCandidates
from recsys.training.negatives import (
    NegativeSampler,
    positives_among,
    probability_of_positives,
    renormalisation,
    rows_of,
)


def describe_candidates(
    sampler: NegativeSampler, item_idx: Tensor, *, embeddings: Tensor, num_targets: int, batch: Batch
) -> SampledCandidates:
    """Return the candidates that all rows share, with a mask of each user's own items.

    Exposures of a user are masked too, because `add_exposures` adds them as candidates of their own.

    Args:
        sampler: sampler that the candidates come from.
        item_idx: int64 [C].
        embeddings: [C, D].
        num_targets: number of candidates that are targets of the batch.
        batch: batch of this process.
    """
    mask = positives_among(item_idx, batch.positives)[batch.owner]
    log_q = sampler.log_q(batch.positives.values, num_targets)
    q_masked = probability_of_positives(log_q, batch.positives)[batch.owner]
    if batch.exposures is not None:
        mask |= positives_among(item_idx, batch.exposures)
        own = _own_positives(batch.exposures, batch)
        log_q = sampler.log_q(batch.exposures.values, num_targets).masked_fill(own, -torch.inf)
        q_masked += probability_of_positives(log_q, batch.exposures)
    return SampledCandidates(
        embeddings=embeddings,
        log_q=sampler.log_q(item_idx, num_targets),
        log_q_target=sampler.log_q(batch.target_idx, num_targets),
        mask=mask,
        q_masked=q_masked,
        num_drawn=(~mask).sum(1),
        history=batch.history,
    )


def add_exposures(
    sampled: SampledCandidates, embeddings: Tensor, *, exposures: RaggedTensor, batch: Batch
) -> SampledCandidates:
    """Return the candidates together with the exposures of each history, which are not sampled.

    A drawn item has the weight `1 / (n Q'(d))`, an exposure the weight 1. So an exposure gets the log probability for
    which `n Q'` is 1, and the expectation of the corrected sum is still the sum over the corpus.

    Args:
        sampled: candidates that were drawn.
        embeddings: [X, D], embeddings of `exposures.values`.
        exposures: items shown to each history's user, H rows without repeats.
        batch: batch of this process; the positives of a user are not negatives.
    """
    owner = rows_of(exposures)
    foreign = owner != torch.arange(len(sampled.mask), device=owner.device).unsqueeze(1)
    certain = renormalisation(sampled.q_masked, sampled.num_drawn)[owner]
    return sampled._replace(
        embeddings=torch.cat([sampled.embeddings, embeddings]),
        log_q=torch.cat([sampled.log_q, certain]),
        mask=torch.cat([sampled.mask, foreign | _own_positives(exposures, batch)], dim=1),
    )


def _own_positives(exposures: RaggedTensor, batch: Batch) -> Tensor:
    """Return a mask bool [X] of the exposures that are positives of their own user."""
    among = positives_among(exposures.values, batch.positives)
    return among[batch.owner[rows_of(exposures)], torch.arange(len(exposures.values), device=among.device)]
