from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from recsys.models.attention import Rows
from recsys.models.dropout import Dropout, keep_mask
from recsys.models.layout import Packed, Padded

HEADS, WIDTH = 2, 3

lists_of_lengths = st.lists(st.integers(1, 12) | st.integers(28, 70), min_size=1, max_size=12)


def packed(lengths: list[int]) -> Packed:
    return Packed(np.array(lengths, np.int64), torch.device("cpu"))


def pad(x: Tensor, lengths: list[int]) -> Tensor:
    return pad_sequence(list(x.split(lengths)), batch_first=True)


def unpad(x: Tensor, lengths: list[int]) -> Tensor:
    return torch.cat([row[:length] for row, length in zip(x, lengths, strict=True)])


def qkv(lengths: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(sum(lengths))
    return torch.randn(sum(lengths), 3, HEADS, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()


@settings(deadline=None, max_examples=40)
@given(lists_of_lengths)
def test_packed_attention_and_its_gradient_equal_the_padded_one(lengths: list[int]) -> None:
    heads = qkv(lengths)
    ours = packed(lengths).attend(heads, 0.0)
    padded = pad(heads, lengths)
    expected = unpad(Padded(padded).attend(padded, 0.0), lengths)
    torch.testing.assert_close(ours, expected)
    direction = torch.randn_like(ours)
    gradients = [torch.autograd.grad((x * direction).sum(), heads)[0] for x in (ours, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [3, 1, 33, 2]])
def test_attention_passes_gradcheck(lengths: list[int]) -> None:
    assert torch.autograd.gradcheck(lambda x: packed(lengths).attend(x, 0.0), qkv(lengths), fast_mode=True)


def test_gradient_with_dropout_is_of_the_weights_that_were_kept() -> None:
    lengths = [4, 40, 1]

    def attend(heads: Tensor) -> Tensor:
        torch.manual_seed(0)
        return packed(lengths).attend(heads, 0.3)

    assert torch.autograd.gradcheck(attend, qkv(lengths), fast_mode=True)


@settings(deadline=None, max_examples=20)
@given(lists_of_lengths)
def test_the_form_for_other_devices_is_equal(lengths: list[int]) -> None:
    heads = qkv(lengths).detach()
    plan = Rows(np.array(lengths, np.int64), HEADS, torch.device("cpu"))
    torch.testing.assert_close(plan.attend_by_sdpa(heads, 0.0), plan.attend(heads, 0.0))


def test_short_sequences_share_rows() -> None:
    plan = Rows(np.array([20, 12, 16, 16, 40, 100]), HEADS, torch.device("cpu"))
    assert [tuple(group.bias.shape) for group in plan.groups] == [(1, 100, 100), (1, 40, 40), (2, 32, 32)]


@settings(deadline=None, max_examples=20)
@given(lists_of_lengths)
def test_packed_sums_equal_padded_ones(lengths: list[int]) -> None:
    x = torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(0))
    layout = packed(lengths)
    expected = unpad(Padded(pad(x, lengths)).cumulative_sum(pad(x, lengths)), lengths)
    torch.testing.assert_close(layout.cumulative_sum(x), expected, atol=1e-5, rtol=1e-5)
    assert layout.position.tolist() == [step for length in lengths for step in range(length)]


def test_keep_mask_keeps_its_share_and_the_mean() -> None:
    torch.manual_seed(0)
    mask = keep_mask((1000, 201), 0.2, torch.empty(0))
    assert mask.shape == (1000, 201)
    assert mask.unique().tolist() == pytest.approx([0.0, 1.25], rel=1e-4)
    # 201,000 draws: the standard error of the share is 0.0009.
    assert (mask == 0).float().mean().item() == pytest.approx(0.2, abs=0.004)
    # Neighbours come from one 64-bit draw, and are independent all the same.
    assert ((mask[:, 1:] == 0) & (mask[:, :-1] == 0)).float().mean().item() == pytest.approx(0.04, abs=0.003)


def test_dropout_repeats_with_the_seed_and_rests_in_evaluation() -> None:
    dropout, x = Dropout(0.5), torch.ones(40)
    torch.manual_seed(1)
    first = dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(dropout(x), first)
    assert torch.equal(dropout.eval()(x), x)
    with pytest.raises(ValueError, match="dropout: found 1.0"):
        Dropout(1.0)
