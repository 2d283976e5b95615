"""The average of the weights, by hand."""

from __future__ import annotations

import pytest
from torch import nn
from torch.optim.swa_utils import AveragedModel

from recsys.training.ema import EMA


def test_decay_grows_with_the_steps_up_to_its_bound() -> None:
    model = nn.Linear(1, 1, bias=False)
    averaged = AveragedModel(model, **EMA(decay=0.5)._kwargs)
    values = [1.0, 2.0, 4.0, 8.0]
    for value in values:
        nn.init.constant_(model.weight, value)
        averaged.update_parameters(model)
    # The first update copies; then decays of 2/11, 3/12 and 4/13.
    expected = 1.0
    for n, value in enumerate(values[1:], 1):
        expected += (1 - min(0.5, (1 + n) / (10 + n))) * (value - expected)
    assert averaged.module.weight.item() == pytest.approx(expected)
    # From step 8 on the bound is lower.
    averaged.n_averaged.fill_(100)
    nn.init.constant_(model.weight, 0.0)
    averaged.update_parameters(model)
    assert averaged.module.weight.item() == pytest.approx(expected / 2)


def test_after_a_warm_start_the_decay_continues_from_the_earlier_steps() -> None:
    model, ema = nn.Linear(1, 1, bias=False), EMA(decay=0.999)
    averaged = AveragedModel(model, **ema._kwargs)
    ema.steps_before = 89
    for value in (1.0, 2.0):
        nn.init.constant_(model.weight, value)
        averaged.update_parameters(model)
    # The second update is step 90 of both, with a decay of 91/100; by itself it would be of 2/11.
    assert averaged.module.weight.item() == pytest.approx(1.09)


def test_a_decay_that_forgets_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^decay: found 1.0, expected a number from 0 to below 1"):
        EMA(decay=1.0)
