from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.models.hstu import HSTU, NUM_BUCKETS, time_bucket
from recsys.models.layout import Packed

DAY = 86_400


def encode(encoder: HSTU, tokens: Tensor, time: list[int]) -> Tensor:
    layout = Packed(
        np.array([len(tokens)]), torch.device("cpu"), time=torch.tensor(time) if encoder.reads_time else None
    )
    states: Tensor = encoder(tokens, layout)
    return states


def test_buckets_of_time_by_hand() -> None:
    # floor(ln(x) / 0.301): a minute 13.6, an hour 27.2, a day 37.8, a week 44.2, a year 57.4.
    elapsed = [0, 1, 2, 60, 3600, DAY, 7 * DAY, 365 * DAY, 2**40]
    assert time_bucket(torch.tensor(elapsed)).tolist() == [0, 0, 2, 13, 27, 37, 44, 57, NUM_BUCKETS - 1]


def test_no_integer_second_is_near_a_bucket_border() -> None:
    """So that another library's logarithm gives the same bucket."""
    borders = np.floor(np.exp(0.301 * np.arange(1, NUM_BUCKETS)))
    seconds = np.concatenate([borders, borders + 1])
    exact = np.log(seconds[seconds > 1].astype(np.longdouble)) / np.longdouble(0.301)
    assert np.abs(exact - np.round(exact)).min() > 1e-12


def reference(encoder: HSTU, x: Tensor, time: list[int]) -> Tensor:
    """One sequence [L, D] by the formulas, pair by pair."""
    heads = encoder.num_heads
    for unit in encoder.blocks:
        projected = F.silu(unit.projection(unit.input_norm(x)))
        gate, query, key, value = projected.chunk(4, dim=-1)
        query, key, value = (part.unflatten(-1, (heads, -1)) for part in (query, key, value))
        rows = []
        for i in range(len(x)):
            gathered = torch.zeros_like(value[0])
            for j in range(i + 1):
                bias = unit.distance_bias[i - j]
                if encoder.reads_time:
                    bias = bias + unit.time_bias[int(np.log(max(1, abs(time[i] - time[j]))) / 0.301)]
                weight = F.silu((query[i] * key[j]).sum(-1) + bias) / (i + 1)
                gathered = gathered + weight.unsqueeze(-1) * value[j]
            rows.append(gathered.flatten())
        x = x + unit.output(gate * unit.attended_norm(torch.stack(rows)))
    return encoder.norm(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("use_time", [True, False])
def test_equals_the_formulas(use_time: bool) -> None:
    encoder = HSTU(8, 12, num_blocks=2, num_heads=2, use_time=use_time).eval()
    for unit in encoder.blocks:
        torch.nn.init.normal_(unit.distance_bias)
        if use_time:
            torch.nn.init.normal_(unit.time_bias)
    tokens = torch.randn(6, 8)
    time = [5 * DAY, 5 * DAY, 5 * DAY + 40, 6 * DAY, 6 * DAY, 400 * DAY]
    torch.testing.assert_close(encode(encoder, tokens, time), reference(encoder, tokens, time), atol=1e-5, rtol=1e-4)


def test_gaps_matter_and_the_calendar_does_not() -> None:
    encoder = HSTU(8, 12).eval()
    for unit in encoder.blocks:
        torch.nn.init.normal_(unit.time_bias)
    tokens, time = torch.randn(4, 8), np.array([100, 100, 200, 300])
    states = encode(encoder, tokens, time.tolist())
    assert torch.equal(encode(encoder, tokens, (time + 20_000 * DAY).tolist()), states)
    later = encode(encoder, tokens, [100, 100, 200, 300 + 30 * DAY])
    assert torch.equal(later[:3], states[:3])
    assert not torch.allclose(later[3], states[3])


def test_short_histories_in_rows_longer_than_the_longest() -> None:
    encoder = HSTU(8, 3).eval()
    tokens = torch.randn(24, 8)
    together = encoder(tokens, Packed(np.full(6, 4), torch.device("cpu"), time=torch.arange(24) * DAY))
    alone = encode(encoder, tokens[20:], [DAY * day for day in range(4)])
    torch.testing.assert_close(together[20:], alone)
