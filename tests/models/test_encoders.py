"""What every history encoder keeps to, whatever it computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recsys.models.encoders import AttentionPooling, MeanPooling, Transformer
from recsys.models.hstu import HSTU
from recsys.models.layout import Packed, Padded
from recsys.models.modern import ModernTransformer

DIM, LONGEST = 8, 40
LENGTHS = [1, 5, 41, 2, 33, 17]  # tokens: the start token and up to 40 events


ENCODERS = {
    "mean": lambda: MeanPooling(DIM, hidden=16, dropout=0.2),
    "attention": lambda: AttentionPooling(DIM, hidden=16, dropout=0.2),
    "transformer": lambda: Transformer(DIM, LONGEST, num_blocks=2, num_heads=2, expansion=2, dropout=0.2),
    "transformer with ReLU": lambda: Transformer(DIM, LONGEST, dropout=0.2, activation="relu"),
    "transformer with a running mean": lambda: Transformer(
        DIM, LONGEST, num_heads=1, dropout=0.2, norm="after", running_mean=0.7
    ),
    "modern": lambda: ModernTransformer(DIM, LONGEST, num_blocks=2, num_heads=2, expansion=2, dropout=0.2),
    "modern without gates": lambda: ModernTransformer(DIM, LONGEST, dropout=0.2, gated=False),
    "modern with a window": lambda: ModernTransformer(DIM, LONGEST, dropout=0.2, window=6),
    "hstu": lambda: HSTU(DIM, LONGEST, num_blocks=2, num_heads=2, dropout=0.2),
    "hstu without time": lambda: HSTU(DIM, LONGEST, dropout=0.2, use_time=False),
}
MIXING = sorted(ENCODERS.keys() - {"mean", "attention"})


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    built: nn.Module = ENCODERS[name]().eval()
    return built


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


def sequences(lengths: list[int] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(length, DIM, generator=generator) for length in lengths]


def times(lengths: list[int] = LENGTHS) -> list[Tensor]:
    """Seconds of each sequence's tokens, from seconds to years apart."""
    generator = torch.Generator().manual_seed(8)
    gaps = [10.0 ** (8 * torch.rand(length, generator=generator)) for length in lengths]
    return [1_000_000_000 + gap.long().cumsum(0) for gap in gaps]


def encode_packed(encoder: nn.Module, tokens: list[Tensor], time: list[Tensor] | None = None) -> list[Tensor]:
    lengths = [len(sequence) for sequence in tokens]
    flat = torch.cat(times(lengths) if time is None else time)
    layout = Packed(np.array(lengths, np.int64), torch.device("cpu"), time=flat if encoder.reads_time else None)
    states: Tensor = encoder(torch.cat(tokens), layout)
    return list(states.split(lengths))


def encode_padded(encoder: nn.Module, tokens: list[Tensor]) -> list[Tensor]:
    """The same in rows, with anything at all as padding."""
    lengths = [len(sequence) for sequence in tokens]
    rows = torch.full((len(tokens), max(lengths), DIM), 3.0)
    time = torch.full((len(tokens), max(lengths)), 77)
    for number, (sequence, seconds) in enumerate(zip(tokens, times(lengths), strict=True)):
        rows[number, : len(sequence)] = sequence
        time[number, : len(sequence)] = seconds
    layout = Padded(rows, torch.tensor(lengths), time=time if encoder.reads_time else None)
    states = encoder(rows, layout)
    return [row[:length] for row, length in zip(states, lengths, strict=True)]


def test_packed_equals_padded_with_any_padding(encoder: nn.Module) -> None:
    packed = encode_packed(encoder, sequences())
    for ours, padded in zip(packed, encode_padded(encoder, sequences()), strict=True):
        torch.testing.assert_close(ours, padded, atol=1e-5, rtol=1e-4)
    for number, tokens in enumerate(sequences()):
        alone = encode_packed(encoder, [tokens], [times()[number]])[0]
        torch.testing.assert_close(packed[number], alone, atol=1e-5, rtol=1e-4)


def test_packed_gradients_equal_padded_ones(encoder: nn.Module) -> None:
    direction = torch.randn(sum(LENGTHS), DIM)
    gradients = []
    for encode in (encode_packed, encode_padded):
        tokens = [sequence.requires_grad_() for sequence in sequences()]
        loss = (torch.cat(encode(encoder, tokens)) * direction).sum()
        gradients.append(torch.autograd.grad(loss, [*tokens, *encoder.parameters()]))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-5 * max(1.0, float(expected.abs().max())), rtol=1e-4)


@settings(deadline=None, max_examples=25)
@given(st.data())
@pytest.mark.parametrize("name", ENCODERS)
def test_a_token_changes_no_state_before_it_and_no_other_sequence(name: str, data: st.DataObject) -> None:
    encoder = build(name)
    lengths = data.draw(st.lists(st.integers(1, LONGEST + 1), min_size=1, max_size=4))
    number = data.draw(st.integers(0, len(lengths) - 1))
    step = data.draw(st.integers(0, lengths[number] - 1))
    tokens, time = sequences(lengths), times(lengths)
    before = encode_packed(encoder, tokens, time)
    tokens[number][step] += torch.arange(DIM)
    if step:
        # The start token has the first event's time: of the others, each its own.
        time[number][step] += 1_000_000
    after = encode_packed(encoder, tokens, time)
    for other in range(len(lengths)):
        untouched = step if other == number else lengths[other]
        torch.testing.assert_close(after[other][:untouched], before[other][:untouched])
    assert not torch.allclose(after[number][step], before[number][step])


def test_a_longer_history_changes_no_earlier_state(encoder: nn.Module) -> None:
    shorter = [(len(sequence) + 1) // 2 for sequence in sequences()]
    cut = [[x[:n] for x, n in zip(whole, shorter, strict=True)] for whole in (sequences(), times())]
    prefixes = encode_packed(encoder, *cut)
    for prefix, whole in zip(prefixes, encode_packed(encoder, sequences()), strict=True):
        torch.testing.assert_close(prefix, whole[: len(prefix)], atol=1e-5, rtol=1e-4)


def test_training_applies_dropout_and_has_gradients_everywhere(encoder: nn.Module) -> None:
    encoder.train()
    first, second = (torch.cat(encode_packed(encoder, sequences())) for _ in range(2))
    assert not torch.allclose(first, second)
    (first * torch.randn_like(first)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in encoder.parameters())


@pytest.mark.parametrize("name", MIXING)
def test_the_order_of_events_matters(name: str) -> None:
    encoder = build(name)
    tokens = sequences()[1]
    last = [encode_packed(encoder, [x])[0][-1] for x in (tokens, tokens[[0, 2, 1, 4, 3]])]
    assert not torch.allclose(*last, atol=1e-4)


@pytest.mark.parametrize("encoder", [Transformer, ModernTransformer, HSTU])
def test_heads_must_divide_the_width(encoder: type) -> None:
    with pytest.raises(ValueError, match="num_heads: found 3, expected a divisor of .*dim 8"):
        encoder(DIM, LONGEST, num_heads=3)
