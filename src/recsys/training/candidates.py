"""The candidates of a step as losses take them: what was drawn, and what each history brings itself.

Shapes: P rows (targets), C candidates, X exposures of the batch, D dim, H histories.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.data.batches.batch import Batch, RaggedTensor
from recsys.training.losses import SampledCandidates
from recsys.training.negatives import (
    NegativeSampler,
    merge_rows,
    positives_among,
    probability_of_positives,
    renormalisation,
    rows_of,
)


def describe_candidates(
    sampler: NegativeSampler, item_idx: Tensor, embeddings: Tensor, num_targets: int, batch: Batch
) -> SampledCandidates:
    """Candidates that all rows share, masked where they are the user's own.

    Exposures are left out of what is drawn for their user: `add_exposures` has them.

    Args:
        sampler: the proposal.
        item_idx: int64 [C].
        embeddings: [C, D].
        num_targets: how many of the candidates are targets, of the batch or of earlier steps.
        batch: of this process.
    """
    known = batch.positives if batch.exposures is None else merge_rows(batch.positives, batch.exposures)
    mask = positives_among(item_idx, known)
    return SampledCandidates(
        embeddings=embeddings,
        log_q=sampler.log_q(item_idx, num_targets),
        log_q_target=sampler.log_q(batch.target_idx, num_targets),
        mask=mask,
        q_masked=probability_of_positives(sampler.log_q(known.values, num_targets), known),
        num_drawn=(~mask).sum(1),
        history=batch.history,
        hardest=sampler.hardest,
    )


def add_exposures(
    sampled: SampledCandidates, embeddings: Tensor, exposures: RaggedTensor, positives: RaggedTensor
) -> SampledCandidates:
    """The candidates, and for each history its exposures, which are there for certain.

    A draw stands for the `1 / (n Q'(d))` items that it is one of, an exposure for itself: its term has the weight 1, by
    a probability of which `n Q'` is 1. So the corrected sum is that over the corpus still, in expectation.

    Args:
        sampled: what was drawn.
        embeddings: [X, D].
        exposures: items shown to each history's user, H rows, none twice in a row.
        positives: items of each history's user, H rows; they are no negatives.
    """
    owner = rows_of(exposures)
    foreign = owner != torch.arange(len(sampled.mask), device=owner.device).unsqueeze(1)
    certain = renormalisation(sampled.q_masked, sampled.num_drawn)[owner]
    return sampled._replace(
        embeddings=torch.cat([sampled.embeddings, embeddings]),
        log_q=torch.cat([sampled.log_q, certain]),
        mask=torch.cat([sampled.mask, foreign | positives_among(exposures.values, positives)], dim=1),
    )
