"""The corrections against the full softmax, in the simulation of arXiv 2507.09331: fixes sign, scale and n for ever."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.training.losses import SampledCandidates, SampledSoftmax

NUM_ITEMS, NUM_NEGATIVES, NUM_DRAWS = 1_000, 64, 3_000
POSITIVE = 800  # the item of rank 801
ROWS = 25  # draws in one call


def full_gradient(scores: Tensor) -> Tensor:
    gradient = scores.softmax(0)
    gradient[POSITIVE] -= 1.0
    return gradient


def sampled_gradient(scores: Tensor, logq: str, correct_candidates: bool = False) -> Tensor:
    """Mean gradient on the score of each item, over many draws of negatives.

    An item's embedding is its score and every user's is 1. Draws are rows of a loss whose mask gives each row its own
    64 candidates.
    """
    generator = torch.Generator().manual_seed(7)
    q = 1.0 / torch.arange(1, NUM_ITEMS + 1, dtype=torch.float64)
    q = (q / q.sum()).float()
    draws = torch.multinomial(q, NUM_DRAWS * NUM_NEGATIVES, replacement=True, generator=generator)
    loss, total = SampledSoftmax(logq), torch.zeros(NUM_ITEMS)  # type: ignore[arg-type]
    foreign = ~torch.eye(ROWS, dtype=torch.bool).repeat_interleave(NUM_NEGATIVES, dim=1)
    for drawn in draws.view(-1, ROWS * NUM_NEGATIVES):
        items = scores.clone().requires_grad_()
        log_q = q.log()[drawn]
        embeddings = items[drawn]
        if correct_candidates:
            # `-log Q` on the negatives alone and without their number: the mistake between `classic` and `corrected`.
            embeddings, log_q = embeddings - log_q, torch.zeros(len(drawn))
        sampled = SampledCandidates(
            embeddings=embeddings.unsqueeze(1),
            log_q=log_q,
            log_q_target=q.log()[POSITIVE].expand(ROWS),
            # Hits of the positive are dropped.
            mask=foreign | (drawn == POSITIVE),
            q_masked=q[POSITIVE].expand(ROWS),
            num_drawn=(drawn != POSITIVE).view(ROWS, NUM_NEGATIVES).sum(1),
            history=torch.arange(ROWS),
        )
        loss(torch.ones(ROWS, 1), items[POSITIVE].expand(ROWS, 1), sampled=sampled).backward()
        assert items.grad is not None
        total += items.grad * ROWS
    return total / NUM_DRAWS


def normal_scores() -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=NUM_ITEMS)).float()


@pytest.mark.parametrize(
    ("logq", "correct_candidates", "ratio", "distance"),
    [
        ("off", False, 0.36, 0.81),
        ("classic", False, 0.09, 0.92),
        ("off", True, 1.13, 0.19),
        ("corrected", False, 0.98, 0.09),
    ],
)
def test_gradient_relative_to_the_full_softmax(
    logq: str, correct_candidates: bool, ratio: float, distance: float
) -> None:
    scores = normal_scores()
    scores[POSITIVE] += 6.0
    assert float(scores.softmax(0)[POSITIVE]) == pytest.approx(0.11, abs=0.005)
    full, sampled = full_gradient(scores), sampled_gradient(scores, logq, correct_candidates)
    assert float(sampled[POSITIVE] / full[POSITIVE]) == pytest.approx(ratio, abs=0.015)
    assert float((sampled - full).abs().sum() / full.abs().sum()) == pytest.approx(distance, abs=0.02)


@pytest.mark.parametrize(("logq", "correct_candidates"), [("classic", False), ("off", True), ("corrected", False)])
def test_corrections_agree_on_unconfident_positives(logq: str, correct_candidates: bool) -> None:
    scores = normal_scores()
    scores[POSITIVE] = scores.exp().mean().log()
    assert float(scores.softmax(0)[POSITIVE]) == pytest.approx(0.001, abs=1e-4)
    full, sampled = full_gradient(scores), sampled_gradient(scores, logq, correct_candidates)
    # The classic form keeps a trace of the positive, which stands in its own sum with weight 1 / Q.
    tolerance = 0.11 if logq == "classic" else 0.01
    assert float(sampled[POSITIVE] / full[POSITIVE]) == pytest.approx(1.0, abs=tolerance)
    # Without any correction it is .8.
    assert float((sampled - full).abs().sum() / full.abs().sum()) == pytest.approx(0.11, abs=0.04)
