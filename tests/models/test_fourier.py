from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.models.fourier import BSARec, LowPass
from recsys.models.layout import Packed, Padded


def layout(*lengths: int) -> Packed:
    return Packed(np.array(lengths, np.int64), torch.device("cpu"))


def low_pass_by_fft(x: Tensor, length: int, num_frequencies: int) -> Tensor:
    """Zeros on the left, transform, other frequencies to zero, and back; [L, D] -> [L, D]."""
    spectrum = torch.fft.rfft(F.pad(x, (0, 0, length - len(x), 0)), dim=0, norm="ortho")
    spectrum[num_frequencies:] = 0
    return torch.fft.irfft(spectrum, n=length, dim=0, norm="ortho")[length - len(x) :]


@pytest.mark.parametrize("length", [8, 9])
@pytest.mark.parametrize("num_frequencies", [1, 2, 4, 5])
def test_low_pass_equals_the_fft_of_sequences_padded_on_the_left(length: int, num_frequencies: int) -> None:
    low_pass = LowPass(length, num_frequencies)
    sequences = [torch.randn(n, 3) for n in range(1, length + 1)]
    expected = torch.cat([low_pass_by_fft(x, length, num_frequencies) for x in sequences])
    ours = low_pass(torch.cat(sequences), layout(*range(1, length + 1)))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    rows = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=9.0)
    padded = low_pass(rows, Padded(rows, torch.arange(1, length + 1)))
    for row, x in zip(padded, sequences, strict=True):
        want = low_pass_by_fft(x, length, num_frequencies)
        torch.testing.assert_close(row[: len(x)], want, atol=1e-5, rtol=1e-4)


def test_low_pass_by_hand() -> None:
    # Of a window of 4, the constant is the sum over 4; with the first frequency (cosine 1, 0, -1, 0, sine 0, 1, 0, -1)
    # half of each: [8, 4] lies at two neighbouring places, so [3 + 8 / 2, 3 + 4 / 2].
    x = torch.tensor([[8.0], [4.0]])
    torch.testing.assert_close(LowPass(4, 1)(x, layout(2)), torch.tensor([[3.0], [3.0]]))
    torch.testing.assert_close(LowPass(4, 2)(x, layout(2)), torch.tensor([[7.0], [5.0]]))
    torch.testing.assert_close(LowPass(4, 3)(x, layout(2)), x)


def reference(encoder: BSARec, tokens: Tensor) -> Tensor:
    """One sequence [L, D] as the paper has it, its attention token by token."""
    length = encoder.position.num_embeddings
    x = encoder.norm(tokens + encoder.position.weight[: len(tokens)].flip(0))
    for block in encoder.blocks:
        low = low_pass_by_fft(x, length, 3)
        filtered = block.filter_norm(x + low + block.high_gain**2 * (x - low))
        query, key, value = block.projection(x).unflatten(-1, (3, block.num_heads, -1)).unbind(1)
        rows = []
        for step in range(len(x)):
            scores = torch.einsum("he,lhe->hl", query[step], key[: step + 1]) / math.sqrt(query.shape[-1])
            rows.append(torch.einsum("hl,lhe->he", scores.softmax(1), value[: step + 1]).flatten())
        attended = block.attention_norm(x + block.output(torch.stack(rows)))
        mixed = 0.7 * filtered + 0.3 * attended
        x = block.feed_norm(mixed + block.contract(F.gelu(block.expand(mixed))))
    return x


def test_equals_the_paper() -> None:
    encoder = BSARec(8, 10, num_blocks=2, num_heads=2, num_frequencies=3).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    sequences = [torch.randn(n, 8) for n in (11, 1, 5)]
    states = encoder(torch.cat(sequences), layout(11, 1, 5)).split([11, 1, 5])
    for tokens, ours in zip(sequences, states, strict=True):
        torch.testing.assert_close(ours, reference(encoder, tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_frequencies": 7}, "num_frequencies: found 7, expected 1 to 6"),
        ({"num_frequencies": 0}, "num_frequencies: found 0"),
        ({"alpha": 1.1}, "alpha: found 1.1"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BSARec(8, 10, **setting)  # type: ignore[arg-type]
