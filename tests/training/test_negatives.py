"""Proposals: what is drawn equals what is claimed; masks equal brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from handmade import training_only
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.data.batches.batch import RaggedTensor
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.loaders import TrainingLoader
from recsys.training.frequency import ExactFrequency, target_probabilities
from recsys.training.negatives import (
    InBatchNegatives,
    MixedNegatives,
    NegativeSampler,
    PopularityNegatives,
    SamplerInputs,
    UniformNegatives,
    positives_among,
    probability_of_positives,
)

# Item 1 is in every history; 5 and 6 are in the corpus but never a target.
USERS = [[(1 + (user * step) % 4, step // 2) for step in range(2 + user % 5)] for user in range(12)]
NUM_ITEMS = 6
FOUR = torch.tensor([0.0, 0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
NOTHING = torch.zeros(0, dtype=torch.int64)


def known(probabilities: Tensor, corpus: Tensor) -> SamplerInputs:
    return SamplerInputs(probabilities, corpus, ExactFrequency(probabilities))


def inputs(predict_first: bool = True) -> SamplerInputs:
    dataset = training_only(USERS, num_items=NUM_ITEMS)
    return known(target_probabilities(dataset, predict_first), torch.arange(1, NUM_ITEMS + 1))


def candidates_of_batches(sampler: NegativeSampler, predict_first: bool, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each item stands among the candidates, and how often it should by `log_q`."""
    dataset = training_only(USERS, num_items=NUM_ITEMS)
    loader = TrainingLoader(BatchBuilder(dataset, 3, predict_first=predict_first), 4, seed=0)
    generator = torch.Generator().manual_seed(0)
    found, expected = np.zeros(NUM_ITEMS + 1), np.zeros(NUM_ITEMS + 1)
    items = torch.arange(NUM_ITEMS + 1)
    for _ in range(epochs):
        for batch in loader:
            targets = batch.target_idx if sampler.frequency is not None else batch.target_idx[:0]
            held = torch.cat([targets, sampler.draw(generator, targets)])
            found += np.bincount(held.numpy(), minlength=NUM_ITEMS + 1)
            expected += sampler.log_q(items, len(targets)).exp().double().numpy() * len(held)
    return found, expected


@pytest.mark.parametrize("predict_first", [True, False])
def test_in_batch_probability_is_the_frequency_in_batches(predict_first: bool) -> None:
    found, expected = candidates_of_batches(InBatchNegatives(inputs(predict_first)), predict_first, epochs=2)
    # Each training event is a target once an epoch, so that they agree exactly.
    np.testing.assert_allclose(found[1:], expected[1:], atol=1e-3)


@pytest.mark.parametrize("predict_first", [True, False])
@pytest.mark.parametrize("sampler", [UniformNegatives, MixedNegatives, PopularityNegatives])
def test_drawn_probability_is_the_frequency_in_batches(
    sampler: type[UniformNegatives] | type[MixedNegatives] | type[PopularityNegatives], predict_first: bool
) -> None:
    found, expected = candidates_of_batches(sampler(inputs(predict_first), 40), predict_first, epochs=60)
    if sampler is not MixedNegatives:
        # The unknown item, row 0, is never drawn.
        expected[0] = 0.0
    assert found[0] == 0
    np.testing.assert_allclose(found[1:].sum(), expected[1:].sum(), rtol=0.02)
    np.testing.assert_allclose(found[1:], expected[1:], rtol=0.08)


def test_mixed_proposal_by_hand() -> None:
    # Q(i) = (B Q_target(i) + B' / N) / (B + B') with B = 30, B' = 10, N = 4.
    sampler = MixedNegatives(known(FOUR, torch.arange(1, 5)), num_negatives=10)
    log_q = sampler.log_q(torch.tensor([1, 2, 3, 4]), num_targets=30)
    expected = [(30 * 0.5 + 2.5) / 40, (30 * 0.3 + 2.5) / 40, (30 * 0.2 + 2.5) / 40, 2.5 / 40]
    torch.testing.assert_close(log_q.exp(), torch.tensor(expected))
    assert sampler.draw(torch.Generator(), NOTHING).shape == (10,)


def test_uniform_draws_from_the_corpus_alone() -> None:
    sampler = UniformNegatives(known(torch.full((9,), 1 / 8, dtype=torch.float64), torch.tensor([2, 5, 7])), 200)
    assert set(sampler.draw(torch.Generator().manual_seed(0), NOTHING).tolist()) == {2, 5, 7}
    torch.testing.assert_close(sampler.log_q(torch.tensor([2, 8]), 0), torch.full((2,), 1 / 3).log())


def test_equal_generators_draw_alike() -> None:
    sampler = MixedNegatives(inputs(), 50)
    first, second = (sampler.draw(torch.Generator().manual_seed(3), NOTHING) for _ in range(2))
    assert torch.equal(first, second)


histories = st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=5)


def as_ragged(rows: list[list[int]]) -> RaggedTensor:
    values = torch.tensor([value for row in rows for value in row], dtype=torch.int64)
    lengths = torch.tensor([len(row) for row in rows])
    return RaggedTensor(values, torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]))


@settings(max_examples=150, deadline=None)
@given(histories, st.lists(st.integers(0, 9), max_size=12))
def test_mask_equals_brute_force(rows: list[list[int]], candidates: list[int]) -> None:
    mask = positives_among(torch.tensor(candidates, dtype=torch.int64), as_ragged(rows))
    assert mask.tolist() == [[candidate in row for candidate in candidates] for row in rows]


@settings(max_examples=150, deadline=None)
@given(histories)
def test_probability_of_positives_equals_brute_force(rows: list[list[int]]) -> None:
    q = torch.tensor([0.0, 0.2, 0.15, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    positives = as_ragged([sorted({*row}) for row in rows])
    found = probability_of_positives(q.clamp(min=1e-12).log()[positives.values], positives)
    expected = torch.tensor([sum((float(q[item]) for item in {*row}), 0.0) for row in rows])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_accidental_hits_and_other_positives_of_the_user_are_masked() -> None:
    # The user of row 0 has 3 and 4: as a candidate neither is its negative, wherever it stands.
    mask = positives_among(torch.tensor([4, 2, 3, 4]), as_ragged([[3, 4, 3], [2], []]))
    assert mask.tolist() == [[True, False, True, True], [False, True, False, False], [False] * 4]


def test_popularity_to_a_power_by_hand() -> None:
    given_items = known(torch.tensor([0.0, 0.64, 0.36, 0.0], dtype=torch.float64), torch.tensor([1, 2, 3]))
    # Item 3 has no events: a tenth of the rarest, .036.
    for exponent, weights in ((0.5, [0.8, 0.6, 0.036**0.5]), (0.0, [1, 1, 1]), (1.0, [0.64, 0.36, 0.036])):
        found = PopularityNegatives(given_items, exponent=exponent).log_q(torch.tensor([1, 2, 3]), 0).exp().tolist()
        assert found == pytest.approx([weight / sum(weights) for weight in weights], rel=1e-5)
