from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recsys.models.encoders import AttentionPooling, MeanPooling, Transformer
from recsys.models.layout import Packed, Padded

DIM, LONGEST = 8, 40
LENGTHS = [1, 5, 41, 2, 33, 17]  # tokens: the start token and up to 40 events

ENCODERS = {
    "mean": lambda: MeanPooling(DIM, hidden=16, dropout=0.2),
    "attention": lambda: AttentionPooling(DIM, hidden=16, dropout=0.2),
    "transformer": lambda: Transformer(DIM, LONGEST, num_blocks=2, num_heads=2, expansion=2, dropout=0.2),
}


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    built: nn.Module = ENCODERS[request.param]().eval()
    return built


def encode_packed(encoder: nn.Module, sequences: list[Tensor]) -> list[Tensor]:
    lengths = [len(sequence) for sequence in sequences]
    states: Tensor = encoder(torch.cat(sequences), Packed(np.array(lengths, np.int64), torch.device("cpu")))
    return list(states.split(lengths))


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(length, DIM, generator=generator) for length in LENGTHS]


def test_packed_equals_padded(encoder: nn.Module) -> None:
    for tokens, packed in zip(sequences(), encode_packed(encoder, sequences()), strict=True):
        rows = torch.stack([tokens, torch.randn_like(tokens)])
        torch.testing.assert_close(packed, encoder(rows, Padded(rows))[0], atol=1e-5, rtol=1e-4)


def test_padding_on_the_right_changes_nothing(encoder: nn.Module) -> None:
    tokens = sequences()[1]
    alone = encoder(tokens.unsqueeze(0), Padded(tokens.unsqueeze(0)))[0]
    padded = torch.cat([tokens, torch.full((6, DIM), 3.0)]).unsqueeze(0)
    torch.testing.assert_close(encoder(padded, Padded(padded))[0, : len(tokens)], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("step", [0, 1, 20, 40])
def test_a_token_changes_no_state_before_it_and_no_other_sequence(encoder: nn.Module, step: int) -> None:
    before = encode_packed(encoder, sequences())
    changed = sequences()
    changed[2][step] += torch.arange(DIM)
    after = encode_packed(encoder, changed)
    for number in (0, 1, 3, 4, 5):
        torch.testing.assert_close(after[number], before[number])
    torch.testing.assert_close(after[2][:step], before[2][:step])
    assert not torch.allclose(after[2][step], before[2][step])


def test_a_longer_history_changes_no_earlier_state(encoder: nn.Module) -> None:
    shorter = [sequence[: (len(sequence) + 1) // 2] for sequence in sequences()]
    for prefix, whole in zip(encode_packed(encoder, shorter), encode_packed(encoder, sequences()), strict=True):
        torch.testing.assert_close(prefix, whole[: len(prefix)], atol=1e-5, rtol=1e-4)


def test_training_drops_and_learns_everywhere(encoder: nn.Module) -> None:
    encoder.train()
    first, second = (torch.cat(encode_packed(encoder, sequences())) for _ in range(2))
    assert not torch.allclose(first, second)
    first.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_the_order_of_events_matters_to_the_transformer() -> None:
    torch.manual_seed(0)
    encoder = Transformer(DIM, LONGEST).eval()
    tokens = sequences()[1]
    swapped = tokens[[0, 2, 1, 3, 4]]
    last = [encode_packed(encoder, [x])[0][-1] for x in (tokens, swapped)]
    assert not torch.allclose(*last)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="dim 8 is not a multiple of num_heads 3"):
        Transformer(DIM, LONGEST, num_heads=3)
