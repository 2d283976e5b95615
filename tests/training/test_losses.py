from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.training.losses import (
    FullSoftmax,
    SampledCandidates,
    SampledSoftmax,
    blocks,
    softmax,
)
from recsys.training.losses.blocks import Buffer
from recsys.training.losses.softmax import SoftmaxTerms, softmax_loss

ROWS, COLUMNS, DIM, HISTORIES = 40, 7, 4, 3  # blocks have at least 16 rows


def reference(
    users: Tensor,
    items: Tensor,
    positive_logits: Tensor,
    bias: Tensor | None = None,
    row_bias: Tensor | None = None,
    mask: Tensor | None = None,
    history: Tensor | None = None,
    labels: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """The formula of `softmax_loss`, left to autograd."""
    logits = users @ items.t()
    if bias is not None:
        logits = logits + bias
    if row_bias is not None:
        logits = logits + row_bias.unsqueeze(1)
    if mask is not None and history is not None:
        logits = logits.masked_fill(mask[history], -torch.inf)
    if labels is not None:
        logits = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    joined = torch.cat([positive_logits.unsqueeze(1), logits], dim=1)
    losses = F.cross_entropy(joined, torch.zeros(len(users), dtype=torch.int64), reduction="none")
    return losses.mean() if weight is None else (losses * weight).sum() / weight.sum()


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((ROWS, DIM), (COLUMNS, DIM), (ROWS,))
    users, items, positives = (torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes)
    return users, items, positives


def optional(
    with_bias: bool, with_row_bias: bool, with_mask: bool, with_labels: bool, with_weight: bool
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    given: dict[str, Any] = {}
    if with_bias:
        given["bias"] = torch.randn(COLUMNS, generator=generator, dtype=torch.float64)
    if with_row_bias:
        given["row_bias"] = torch.randn(ROWS, generator=generator, dtype=torch.float64)
    if with_mask:
        given["mask"] = torch.rand(HISTORIES, COLUMNS, generator=generator) < 0.4
        given["history"] = torch.randint(HISTORIES, (ROWS,), generator=generator)
    if with_labels:
        given["labels"] = torch.randint(COLUMNS, (ROWS,), generator=generator)
    if with_weight:
        given["weight"] = torch.rand(ROWS, generator=generator, dtype=torch.float64)
    return given


def ours_of(users: Tensor, items: Tensor, positives: Tensor, **terms: Any) -> Tensor:
    return softmax_loss(users, items, positive_logits=positives, terms=SoftmaxTerms(**terms), buffer=Buffer())


@pytest.fixture(params=[1, 1 << 20], ids=["many blocks", "one block"])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("present", list(product([False, True], repeat=5)))
def test_softmax_loss_has_the_value_and_gradients_of_the_formula(present: tuple[bool, ...]) -> None:
    given, leaves = optional(*present), inputs()
    ours = ours_of(*leaves, **given)
    expected = reference(*leaves, **given)
    torch.testing.assert_close(ours, expected)
    for found, wanted in zip(
        torch.autograd.grad(3 * ours, leaves), torch.autograd.grad(3 * expected, leaves), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_softmax_loss_passes_gradcheck() -> None:
    given = optional(True, True, True, True, True)
    leaves = inputs()
    assert torch.autograd.gradcheck(lambda *x: ours_of(*x, **given), leaves)


def test_skipping_masked_columns_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    # The second half of the columns is masked for most histories, and some logits underflow by themselves.
    generator = torch.Generator().manual_seed(0)
    shapes = ((60, 8), (200, 8), (60,))
    users, items, positives = (torch.randn(s, generator=generator).mul(3).requires_grad_() for s in shapes)
    users.data[0] *= 30
    mask = torch.rand(6, 200, generator=generator) < torch.linspace(0, 1, 200)
    terms: dict[str, Any] = {"mask": mask, "history": torch.arange(60) % 6}
    results = []
    for share in (0.0, 2.0):
        monkeypatch.setattr(softmax, "SKIP_FROM", share)
        loss = ours_of(users, items, positives, **terms)
        results.append((loss, *torch.autograd.grad(loss, (users, items, positives))))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    block = torch.cat([torch.linspace(-110, 0, 2000), torch.tensor([-1e38, -torch.inf])])
    assert torch.equal(softmax.exp_(block.clone(), skips=True), softmax.exp_(block.clone(), skips=False))


@pytest.mark.usefixtures("block_bytes")
def test_full_softmax_is_cross_entropy() -> None:
    users, items, _ = inputs()
    labels = torch.randint(COLUMNS, (ROWS,), generator=torch.Generator().manual_seed(1))
    ours, expected = FullSoftmax()(users, items, labels=labels), F.cross_entropy(users @ items.t(), labels)
    torch.testing.assert_close(ours, expected)
    leaves = (users, items)
    for found, wanted in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(found, wanted)
    assert torch.autograd.gradcheck(lambda *x: FullSoftmax()(*x, labels=labels), leaves)


def test_weights_of_a_full_softmax() -> None:
    users, items, _ = inputs()
    labels, weight = torch.arange(ROWS) % COLUMNS, torch.arange(ROWS, dtype=torch.float64)
    by_row = F.cross_entropy(users @ items.t(), labels, reduction="none")
    torch.testing.assert_close(
        FullSoftmax()(users, items, labels=labels, weight=weight), by_row @ weight / weight.sum()
    )


def test_full_softmax_stays_finite_with_large_logits() -> None:
    users, items = torch.full((2, 1), 1000.0, requires_grad=True), torch.tensor([[1.0], [-1.0], [0.5]])
    loss = FullSoftmax()(users, items, labels=torch.tensor([0, 1]))
    # Row 0 is certain and right: loss 0. Row 1 is certain and wrong by 2000.
    assert loss.item() == pytest.approx(1000.0)
    assert torch.isfinite(torch.autograd.grad(loss, users)[0]).all()


def one_row(mask: Tensor) -> tuple[Tensor, Tensor, SampledCandidates]:
    """Scores: positive 2 * 0.5 = 1; candidates 2, 0, -2."""
    users, items, positives = torch.tensor([[2.0]]), torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([[0.5]])
    log_q = torch.tensor([0.5, 0.25, 0.25]).log()
    num_drawn = (~mask).sum(1)
    given = SampledCandidates(
        items, log_q, torch.tensor([0.1]).log(), mask, torch.tensor([0.2]), num_drawn, torch.tensor([0])
    )
    return users, positives, given


def sampled(logq: str, mask: Tensor) -> Tensor:
    users, positives, candidates = one_row(mask)
    loss: Tensor = SampledSoftmax(logq)(users, positives, sampled=candidates)  # type: ignore[arg-type]
    return loss


def test_corrections_by_hand() -> None:
    nothing, first = torch.tensor([[False, False, False]]), torch.tensor([[True, False, False]])
    plain = math.log(1 + (math.exp(2) + math.exp(0) + math.exp(-2)) / math.exp(1))
    assert sampled("off", nothing).item() == pytest.approx(plain, rel=1e-5)
    # Every column is divided by its probability, the positive's (0.1) too.
    classic = math.log(1 + (math.exp(2) / 0.5 + math.exp(0) / 0.25 + math.exp(-2) / 0.25) / (math.exp(1) / 0.1))
    assert sampled("classic", nothing).item() == pytest.approx(classic, rel=1e-5)
    # Two candidates remain, of a proposal that is masked with probability 0.2: n Q'(d) = 2 * 0.25 / 0.8.
    corrected = math.log(1 + (math.exp(0) + math.exp(-2)) / (2 * 0.25 / 0.8) / math.exp(1))
    assert sampled("corrected", first).item() == pytest.approx(corrected, rel=1e-5)


def test_a_row_without_candidates_costs_nothing() -> None:
    everything = torch.tensor([[True, True, True]])
    assert sampled("corrected", everything).item() == pytest.approx(0.0, abs=1e-6)


def test_an_exposure_has_the_weight_one() -> None:
    users, positives, given = one_row(torch.tensor([[False, False, False]]))
    # The last candidate is there for certain: two are drawn, and its term has the weight 1.
    given = given._replace(num_drawn=torch.tensor([2]), log_q=given.log_q.clone())
    given.log_q[2] = math.log(0.8 / 2)
    drawn = (math.exp(2) / 0.5 + math.exp(0) / 0.25) * 0.8 / 2
    expected = math.log(1 + (drawn + math.exp(-2)) / math.exp(1))
    assert SampledSoftmax("corrected")(users, positives, sampled=given).item() == pytest.approx(expected, rel=1e-5)


def test_rows_of_weight_zero_do_not_change_the_loss() -> None:
    users, positives, given = one_row(torch.tensor([[False, False, False]]))
    users.requires_grad_()
    value = SampledSoftmax()(users, positives, sampled=given, weight=torch.zeros(1))
    assert value.item() == 0.0
    assert torch.autograd.grad(value, users)[0].tolist() == [[0.0]]


def test_unknown_correction_is_refused() -> None:
    with pytest.raises(ValueError, match="logq: found 'log', expected 'off'"):
        SampledSoftmax("log")  # type: ignore[arg-type]
