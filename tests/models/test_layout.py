from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from recsys.models.attention import AttentionRows, WindowPieces
from recsys.models.dropout import Dropout, dropout_mask
from recsys.models.layout import Packed, Padded

HEADS, WIDTH = 2, 3

lists_of_lengths = st.lists(st.integers(1, 12) | st.integers(28, 70), min_size=1, max_size=12)


def packed(lengths: list[int]) -> Packed:
    return Packed(np.array(lengths, np.int64), torch.device("cpu"))


def pad(x: Tensor, lengths: list[int]) -> Tensor:
    return pad_sequence(list(x.split(lengths)), batch_first=True)


def unpad(x: Tensor, lengths: list[int]) -> Tensor:
    return torch.cat([row[:length] for row, length in zip(x, lengths, strict=True)])


def padded(x: Tensor, lengths: list[int]) -> Padded:
    return Padded(pad(x, lengths), torch.tensor(lengths))


def by_hand(heads: Tensor, window: int) -> Tensor:
    """Attention of one sequence [L, 3, H, E] to the last `window` tokens, query by query."""
    query, key, value = heads.unbind(1)
    rows = []
    for step in range(len(heads)):
        seen = slice(max(0, step - window + 1), step + 1)
        scores = torch.einsum("he,lhe->hl", query[step], key[seen]) / math.sqrt(WIDTH)
        rows.append(torch.einsum("hl,lhe->he", scores.softmax(1), value[seen]))
    return torch.stack(rows)


def qkv(lengths: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(sum(lengths))
    return torch.randn(sum(lengths), 3, HEADS, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()


@settings(deadline=None, max_examples=40)
@given(lists_of_lengths)
def test_packed_attention_and_its_gradient_equal_the_padded_one(lengths: list[int]) -> None:
    heads = qkv(lengths)
    ours = packed(lengths).attend(heads, 0.0)
    expected = unpad(padded(heads, lengths).attend(pad(heads, lengths), 0.0), lengths)
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
    for window in (None, 5):
        plan = AttentionRows(np.array(lengths, np.int64), HEADS, device=torch.device("cpu"), window=window)
        torch.testing.assert_close(plan.attend_by_sdpa(heads, 0.0), plan.attend(heads, 0.0))


def test_short_sequences_share_rows() -> None:
    plan = AttentionRows(np.array([20, 12, 16, 16, 40, 100]), HEADS, device=torch.device("cpu"))
    assert [tuple(group.bias.shape) for group in plan.groups] == [(1, 100, 100), (1, 40, 40), (2, 32, 32)]


@settings(deadline=None, max_examples=20)
@given(lists_of_lengths)
def test_packed_sums_equal_padded_ones(lengths: list[int]) -> None:
    x = torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(0))
    layout = packed(lengths)
    rows = pad(x, lengths)
    expected = unpad(padded(x, lengths).cumulative_sum(rows), lengths)
    torch.testing.assert_close(layout.cumulative_sum(x), expected, atol=1e-5, rtol=1e-5)
    assert layout.position.tolist() == [step for length in lengths for step in range(length)]
    assert layout.from_end.tolist() == [step for length in lengths for step in reversed(range(length))]
    # Padding counts nowhere.
    total = unpad(padded(x, lengths).total(rows.masked_fill(rows == 0, 7.0)), lengths)
    torch.testing.assert_close(layout.total(x), total, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(total, torch.cat([y.sum(0).expand_as(y) for y in x.split(lengths)]))


@settings(deadline=None, max_examples=40)
@given(lists_of_lengths, st.sampled_from([1, 2, 3, 8, 30, 100]))
def test_windowed_attention_and_its_gradient_equal_the_padded_one_and_the_one_by_hand(
    lengths: list[int], window: int
) -> None:
    heads = qkv(lengths)
    ours = packed(lengths).attend(heads, 0.0, window=window)
    in_rows = unpad(padded(heads, lengths).attend(pad(heads, lengths), 0.0, window=window), lengths)
    expected = torch.cat([by_hand(x, window) for x in heads.split(lengths)])
    direction = torch.randn_like(ours)
    gradients = [torch.autograd.grad((x * direction).sum(), heads)[0] for x in (ours, in_rows, expected)]
    for number, other in ((1, in_rows), (2, expected)):
        torch.testing.assert_close(ours, other)
        torch.testing.assert_close(gradients[0], gradients[number])


@pytest.mark.parametrize("window", [2, 40])
def test_windowed_attention_passes_gradcheck_with_dropout(window: int) -> None:
    lengths = [3, 1, 45, 2]

    def attend(heads: Tensor) -> Tensor:
        torch.manual_seed(0)
        return packed(lengths).attend(heads, 0.3, window=window)

    assert torch.autograd.gradcheck(attend, qkv(lengths), fast_mode=True)


def test_long_sequences_in_a_window_take_rows_of_twice_its_length() -> None:
    # 500 tokens are 9 pieces of 100 tokens, each 50 after the one before; 120 are a piece of 100 and one of 70.
    pieces = WindowPieces(np.array([500, 120, 7]), HEADS, device=torch.device("cpu"), window=50)
    assert [tuple(group.bias.shape) for group in pieces._rows.groups] == [(11, 100, 100), (1, 32, 32)]


def test_pairs_by_hand() -> None:
    # Sequences of 2 and 3 tokens share a row of 32, the longer one first.
    layout = Packed(np.array([2, 3]), torch.device("cpu"), time=torch.tensor([10, 25, 100, 100, 400]))
    (pairs,) = layout.pairs(HEADS)
    assert pairs.visible.shape == (1, 32, 32)
    seen = pairs.visible[0, :5, :5].nonzero().tolist()
    assert seen == [[0, 0], [1, 0], [1, 1], [2, 0], [2, 1], [2, 2], [3, 3], [4, 3], [4, 4]]
    assert pairs.elapsed is not None
    assert [int(pairs.elapsed[0, i, j]) for i, j in seen] == [0, 0, 0, 300, 300, 0, 0, 15, 0]
    rows = Padded(torch.zeros(1, 3, 1), torch.tensor([3]), time=torch.tensor([[100, 100, 400]]))
    (pairs,) = rows.pairs(HEADS)
    assert pairs.visible.tolist() == [[[True, False, False], [True, True, False], [True, True, True]]]
    assert pairs.elapsed is not None
    assert pairs.elapsed[0, 2].tolist() == [300, 300, 0]
    (pairs,) = packed([2, 3]).pairs(HEADS)
    assert pairs.elapsed is None


@settings(deadline=None, max_examples=20)
@given(lists_of_lengths)
def test_split_and_join_are_inverse(lengths: list[int]) -> None:
    heads = qkv(lengths)
    layout = packed(lengths)
    for part, rows in enumerate(zip(*layout.split(heads), strict=True)):
        assert torch.equal(layout.join(rows), heads[:, part])
    rows = padded(heads, lengths).split(pad(heads, lengths))
    assert torch.equal(unpad(padded(heads, lengths).join([rows[0][2]]), lengths), heads[:, 2])


def test_keep_mask_keeps_its_share_and_the_mean() -> None:
    torch.manual_seed(0)
    mask = dropout_mask((1000, 201), 0.2, like=torch.empty(0))
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
