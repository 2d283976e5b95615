"""Item priors: ages, horizons, and the terms of a training step against a slow reference."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recsys.core.errors import UserError
from recsys.core.index_time import DAY, IndexTime
from recsys.data.dataset import NO_BIRTH
from recsys.models.priors import UNBORN, ItemPriors, PriorTerms, ages
from recsys.training.losses.sampled import SampledCandidates
from recsys.training.losses.softmax import FullSoftmax, SampledSoftmax
from recsys.training.prior_terms import TrainingPriors

NOW = 1_700_000_000


def with_ages(values: list[float]) -> ItemPriors:
    """Return priors with `g = values` at ages 0, 1, 3, 7, ... days."""
    priors = ItemPriors(reads_age=True)
    assert priors.age is not None
    with torch.no_grad():
        priors.age[: len(values)] = torch.tensor(values) / 5
        priors.age[-1] = 7.0 / 5
    return priors


def test_the_function_of_age_is_linear_between_its_knots() -> None:
    priors = with_ages([2.0, 1.0, 0.0, -1.0])
    days = torch.tensor([0.0, 1.0, 3.0, 7.0, 2**1.5 - 1, math.nan, -3.0])
    found = priors.of_ages(days).tolist()
    assert found == pytest.approx([2.0, 1.0, 0.0, -1.0, 0.5, 7.0, 2.0], abs=1e-5)


def test_the_age_term_of_an_index_is_the_log_mean_over_its_horizon() -> None:
    priors = with_ages([1.0, 0.5])
    born = np.array([NO_BIRTH, NOW, NOW + DAY, NOW + 9 * DAY])
    found = priors.age_bias(born, IndexTime(NOW, 2.0))
    # Item 2 exists in the second half of the horizon alone.
    moments = (np.arange(16) + 0.5) / 8
    one = [math.exp(priors.of_ages(torch.tensor(a)).item()) for a in moments]
    two = [math.exp(priors.of_ages(torch.tensor(a - 1)).item()) if a >= 1 else 0.0 for a in moments]
    assert found.tolist() == pytest.approx([7.0, math.log(np.mean(one)), math.log(np.mean(two)), UNBORN], abs=1e-5)


def test_half_lives_are_positive() -> None:
    with pytest.raises(UserError, match=r"model.priors.half_lives_days: found \[1, 0\], expected positive numbers"):
        ItemPriors(reads_age=False, half_lives_days=[1, 0])


def test_ages_of_items() -> None:
    found = ages(np.array([NO_BIRTH, NOW - DAY, NOW + DAY]), NOW)
    assert found[0].isnan()
    assert found[1:].tolist() == [1.0, -1.0]


def small_data(num_items: int = 6) -> Any:
    rng = np.random.default_rng(0)
    time = np.sort(NOW + rng.integers(0, 40 * DAY, 30))
    born = np.array([NO_BIRTH, NOW - 9 * DAY, NO_BIRTH, NOW + 5 * DAY, NOW + 10 * DAY, NOW - DAY, NOW + 30 * DAY])
    return SimpleNamespace(
        item_idx=rng.integers(1, num_items + 1, 30).astype(np.int32),
        time=time,
        offsets=np.array([0, 30]),
        train_end=np.array([25]),
        born=born,
        num_items=num_items,
        meta=SimpleNamespace(num_known=num_items),
        train_until=int(time[24]),
    )


def some_terms(lag_days: float = 0.0) -> tuple[Any, ItemPriors, TrainingPriors, PriorTerms, dict[str, torch.Tensor]]:
    dataset = small_data()
    priors = ItemPriors(reads_age=True, half_lives_days=[1, 4])
    torch.manual_seed(0)
    for parameter in priors.parameters():
        parameter.data.normal_(std=0.2)
    training = TrainingPriors(dataset, priors, lag_days=lag_days)
    inputs = {
        "time": torch.from_numpy(dataset.time[10:20].copy()),
        "target_idx": torch.from_numpy(dataset.item_idx[10:20].astype(np.int64)),
        "candidates": torch.tensor([1, 2, 3, 4, 5, 6, 3]),
    }
    return dataset, priors, training, training.terms(**inputs, generator=torch.Generator()), inputs


def test_terms_are_those_of_each_target_and_candidate() -> None:
    dataset, priors, training, terms, inputs = some_terms()
    assert training.states is not None
    for row, time in enumerate(inputs["time"].tolist()):
        begin = time // (DAY // 4) * (DAY // 4)
        moment = int((training.times <= begin).sum()) - 1
        state = training.states[max(moment, 0)]
        for column, item in enumerate(inputs["candidates"].tolist()):
            found = terms.table[terms.group[row], column].item()
            if dataset.born[item] > begin + DAY // 4:
                assert found == -1e4
                continue
            age = float("nan") if dataset.born[item] == NO_BIRTH else (begin - dataset.born[item]) / DAY
            expected = priors.of_ages(torch.tensor(age)) + priors.of_states(state[item])
            assert found == pytest.approx(expected.item(), abs=1e-3)
        own = inputs["target_idx"][row].item()
        place = inputs["candidates"].tolist().index(own)
        if terms.table[terms.group[row], place] > -1e3:
            assert terms.positive[row].item() == pytest.approx(terms.table[terms.group[row], place].item(), abs=1e-5)


def test_a_lag_reads_an_earlier_state() -> None:
    _, _, _, fresh, _ = some_terms()
    _, _, _, old, _ = some_terms(lag_days=20.0)
    assert not torch.equal(fresh.table, old.table)


@pytest.mark.parametrize("logq", ["off", "classic", "corrected"])
def test_losses_with_priors_equal_a_softmax_of_all_logits(logq: str) -> None:
    _, priors, _, terms, inputs = some_terms()
    torch.manual_seed(1)
    users = torch.randn(10, 4, requires_grad=True)
    items = torch.randn(7, 4, requires_grad=True)
    positives = torch.randn(10, 4, requires_grad=True)
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[1, 2] = True
    history = torch.tensor([0, 1] * 5)
    log_q, log_q_target = torch.log(torch.rand(7)), torch.log(torch.rand(10))
    drawn = (~mask).sum(1)
    sampled = SampledCandidates(items, log_q, log_q_target, mask, torch.zeros(2), drawn, history, prior=terms)
    loss = SampledSoftmax(logq)(users, positives, sampled=sampled)  # type: ignore[arg-type]
    parameters = [users, items, positives, *priors.parameters()]
    found = torch.autograd.grad(loss, parameters, retain_graph=True)
    positive = (users * positives).sum(1) + terms.positive
    negative = users @ items.t() + terms.table[terms.group]
    if logq == "classic":
        positive, negative = positive - log_q_target, negative - log_q
    if logq == "corrected":
        negative = negative - log_q - torch.log(drawn[history].float()).unsqueeze(1)
    negative = negative.masked_fill(mask[history], -1e9)
    expected = F.cross_entropy(torch.cat([positive.unsqueeze(1), negative], 1), torch.zeros(10, dtype=torch.int64))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_full_softmax_with_priors_equals_cross_entropy() -> None:
    _, priors, training, _, inputs = some_terms()
    corpus = torch.arange(1, 7)
    prior = training.terms(inputs["time"], inputs["target_idx"], corpus, generator=torch.Generator())
    torch.manual_seed(1)
    users, items = torch.randn(10, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    labels = inputs["target_idx"] - 1
    loss = FullSoftmax()(users, items, labels=labels, prior=prior)
    logits = users @ items.t() + prior.table[prior.group]
    own = (users * items[labels]).sum(1) + prior.positive
    logits = logits.scatter(1, labels.unsqueeze(1), own.unsqueeze(1))
    expected = F.cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    parameters = [users, items, *priors.parameters()]
    found, wanted = (torch.autograd.grad(each, parameters, retain_graph=True) for each in (loss, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_priors_fitted_alone_explain_who_is_popular_now() -> None:
    """Every day another item is the only one that is chosen: the recent popularity must say so."""
    days = np.arange(60)
    time = np.repeat(NOW + days * DAY, 4)
    items = np.repeat(days // 10 + 1, 4).astype(np.int32)
    dataset = SimpleNamespace(
        item_idx=items,
        time=time,
        offsets=np.array([0, len(time)]),
        train_end=np.array([len(time)]),
        born=None,
        num_items=6,
        num_trained=6,
        meta=SimpleNamespace(num_known=6),
        train_until=int(time[-1]),
    )
    priors = ItemPriors(reads_age=False, half_lives_days=[1, 16])
    training: Any = TrainingPriors(dataset, priors)  # type: ignore[arg-type]
    training.fit_alone(dataset, seed=0)
    assert priors.recency is not None
    found = priors.recency.detach().clone()
    assert found[:2].sum() * 5 > 0.5
    # Fitted priors stay: a resumed or warm run brings its own.
    training.fit_alone(dataset, seed=1)
    assert torch.equal(priors.recency, found)
