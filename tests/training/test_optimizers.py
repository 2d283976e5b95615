"""Sparse and dense updates behind one optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from recsys.training.optimizers import AdamW, DenseAndSparse


class Tables(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 3, sparse=sparse)
        self.layer = nn.Linear(3, 3)
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return (self.layer(self.table(rows)) * self.gain).square().mean()


def pair() -> tuple[Tables, Tables]:
    dense, sparse = Tables(False), Tables(True)
    sparse.load_state_dict(dense.state_dict())
    return dense, sparse


def step(model: nn.Module, optimizer: torch.optim.Optimizer, rows: list[int]) -> None:
    optimizer.zero_grad()
    model(torch.tensor(rows)).backward()
    optimizer.step()


def assert_same(first: nn.Module, second: nn.Module) -> None:
    for (name, one), (_, other) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_sparse_equals_dense_on_touched_rows() -> None:
    dense, sparse = pair()
    factory = AdamW(lr=0.05)
    optimizers = factory.optimizer(dense), factory.optimizer(sparse)
    assert isinstance(optimizers[1], DenseAndSparse)
    before = sparse.table.weight.detach().clone()
    for _ in range(4):
        step(dense, optimizers[0], [1, 2, 2])
        step(sparse, optimizers[1], [1, 2, 2])
    assert_same(dense, sparse)
    # Rows that no batch held stay where they were.
    assert torch.equal(sparse.table.weight[[0, 3, 4, 5]], before[[0, 3, 4, 5]])


def test_rows_without_a_gradient_wait() -> None:
    dense, sparse = pair()
    factory = AdamW(lr=0.05)
    optimizers = factory.optimizer(dense), factory.optimizer(sparse)
    for model, optimizer in zip((dense, sparse), optimizers, strict=True):
        step(model, optimizer, [1, 2])
        step(model, optimizer, [3])
    # The dense momentum moves row 1 in the second step, the lazy one does not.
    assert not torch.equal(dense.table.weight[1], sparse.table.weight[1])


def test_state_goes_through_a_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> None:
    _, model = pair()
    factory = AdamW(lr=0.05)
    optimizer = factory.optimizer(model)
    step(model, optimizer, [0, 1, 2])
    file = tmp_path_factory.mktemp("state") / "state.pt"
    torch.save(optimizer.state_dict(), file)
    twin = copy.deepcopy(model)
    other = factory.optimizer(twin)
    other.load_state_dict(torch.load(file, weights_only=True))
    for rows in ([1, 2], [2, 5]):
        step(model, optimizer, rows)
        step(twin, other, rows)
    assert_same(model, twin)


@pytest.mark.parametrize("loaded", [False, True])
def test_schedule_reaches_both_learning_rates(loaded: bool) -> None:
    _, model = pair()
    factory = AdamW(lr=0.1, sparse_lr=0.4, schedule="linear", warmup_steps=2)
    optimizer = factory.optimizer(model)
    assert isinstance(optimizer, DenseAndSparse)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda number: factory.factor(number, 12))
    if loaded:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    rates = []
    for _ in range(13):
        rates.append([optimizer.dense.param_groups[0]["lr"], optimizer.sparse.param_groups[0]["lr"]])
        step(model, optimizer, [1])
        schedule.step()
    # Two steps of warm-up, then ten down to nothing.
    factors = [0.5, 1.0, *(1.0 - number / 10 for number in range(11))]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor([[0.1 * f, 0.4 * f] for f in factors]))


def test_schedules() -> None:
    assert [AdamW().factor(number, 10) for number in (0, 5, 50)] == [1.0, 1.0, 1.0]
    cosine = AdamW(schedule="cosine")
    assert [cosine.factor(number, 10) for number in (0, 5, 10, 20)] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert AdamW(warmup_steps=4).factor(0, 10) == 0.25


def test_decay_is_for_matrices_that_are_no_tables() -> None:
    model = Tables(False)
    optimizer = AdamW(weight_decay=0.3).optimizer(model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(model.layer.weight)] == 0.3
    assert {decay[id(p)] for p in (model.layer.bias, model.gain, model.table.weight)} == {0.0}


def test_frozen_parameters_are_left_out() -> None:
    model = Tables(False)
    model.gain.requires_grad_(False)
    optimizer = AdamW().optimizer(model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr: found -1.0"),
        ({"sparse_lr": -0.1}, "sparse_lr: found -0.1"),
        ({"weight_decay": -1e-4}, "weight_decay"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"betas": (0.9,)}, "betas"),
        ({"schedule": "cosin"}, "schedule: found 'cosin'"),
    ],
)
def test_wrong_values(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdamW(**settings)  # type: ignore[arg-type]
