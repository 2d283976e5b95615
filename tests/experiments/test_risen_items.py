"""Items that became popular after the training of the towers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from handmade import DAY, handmade
from omegaconf import DictConfig
from torch import Tensor
from worlds import compose

from recsys.core.index_time import IndexTime
from recsys.core.types import Int64Array
from recsys.data.batches.batch import Batch
from recsys.data.batches.targets import TargetSampling
from recsys.data.dataset import PreparedDataset
from recsys.experiments import risen_items as module
from recsys.experiments.item_biases import set_bias
from recsys.experiments.risen_items import ascribed_shares, risen_items
from recsys.models import blend

# Three users, four trained items, and items 5 and 6, which only newer events have.
DATA = handmade([([1, 2], [5], [6]), ([1, 3, 1], [5], []), ([4], [], [])])


class Table(torch.nn.Module):
    """Model whose logits are a table of users and items, and a bias."""

    temperature, device, priors = 1.0, torch.device("cpu"), None

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.item_bias = logits, torch.full((logits.shape[1],), 7.0)

    def encode_users(self, batch: Batch) -> Tensor:
        rows = torch.eye(len(self.logits))[torch.arange(len(batch.query))]
        return torch.cat([rows, torch.ones(len(rows), 1)], 1)

    def encode_items(self, items: Tensor) -> Tensor:
        return torch.cat([self.logits[:, items].T, self.item_bias[items].unsqueeze(1)], 1)

    def set_item_bias(self, *_: object) -> None:
        pass


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.setattr(blend, "members_of", lambda _: ())
    return Table(torch.randn(3, 7, generator=torch.Generator().manual_seed(0)))


def test_items_with_newer_events_only() -> None:
    def risen(data: PreparedDataset, ends: Int64Array) -> list[int]:
        recent = dataclasses.replace(data, train_end=ends)
        return risen_items(data, recent, target_sampling=TargetSampling()).tolist()

    assert risen(DATA, DATA.offsets[1:]) == [5, 6]
    assert risen(DATA, DATA.val_end) == [5]
    assert risen(DATA, DATA.train_end) == []
    # An event that does not count, such as one that hides the item, lifts nothing.
    weight = np.where(DATA.item_idx == 6, 0.0, 1.0).astype(np.float32)
    assert risen(dataclasses.replace(DATA, weight=weight), DATA.offsets[1:]) == [5]


def test_the_ascribed_share_is_the_mean_probability_beside_the_trained_items(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose("train", [])
    shares = ascribed_shares(model, DATA, np.array([5, 6]), config=config)
    every = model.logits[:, 1:5].logsumexp(1, keepdim=True)
    expected = (model.logits[:, 5:] - every).exp().mean(0)
    # The sum over the trained items is estimated from 10,000 draws.
    assert shares.tolist() == pytest.approx(expected.tolist(), rel=0.05)
    # In blocks of one item the same.
    monkeypatch.setattr(module, "_BLOCK", 1)
    assert torch.equal(ascribed_shares(model, DATA, np.array([5, 6]), config=config), shares)
    # So unlikely that its share would be 0 in floats.
    model.logits[:, 6] = -1e6
    assert ascribed_shares(model, DATA, np.array([6]), config=config) > 0
    assert model.item_bias.tolist() == [7.0] * 7


def test_an_index_of_newer_events_shows_what_has_risen(model: Any) -> None:
    shift = "model.prior_shift={weight: 1.0, half_life_days: 1.0, power: 2.0}"
    config = compose("train", [shift, "model.new_items_offset=-3.0"])
    before, after = (bias_at(model, config, moment) for moment in (int(DATA.time[2]), int(DATA.time.max()) + 2 * DAY))
    # Without events the offset of new items holds; with two it is lifted, and what has one event is below.
    assert before[5] == before[6]
    assert after[5] > after[6]
    assert after[5] > before[5]


def bias_at(model: Any, config: DictConfig, now: int) -> Tensor:
    set_bias(model, DATA, config=config, index_time=IndexTime(now, 1.0))
    assert model.item_bias is not None
    return model.item_bias.clone()
