from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.models.layout import Packed
from recsys.models.modern import ModernTransformer, _Rotation


def layout(*lengths: int) -> Packed:
    return Packed(np.array(lengths, np.int64), torch.device("cpu"))


def test_rotation_by_hand() -> None:
    heads = torch.zeros(3, 3, 1, 4)
    heads[:, 0, 0] = torch.tensor([1.0, 2.0, 0.0, 0.0])
    heads[:, 2] = 5.0
    turned = _Rotation(4, 3)(heads, torch.arange(3))
    # Width 4: the pair (0, 2) turns by 1 radian a position, the pair (1, 3) by 1 / 100.
    for step in range(3):
        slow = step / 100
        expected = [math.cos(step), 2 * math.cos(slow), math.sin(step), 2 * math.sin(slow)]
        torch.testing.assert_close(turned[step, 0, 0], torch.tensor(expected))
    # Values are not turned.
    assert torch.equal(turned[:, 2], heads[:, 2])


def test_turned_products_depend_on_distances_alone() -> None:
    rotation = _Rotation(8, 60)
    query, key = torch.randn(2, 8, dtype=torch.float32)

    def product(at: int, other: int) -> float:
        heads = torch.zeros(2, 3, 1, 8)
        heads[0, 0, 0], heads[1, 1, 0] = query, key
        turned = rotation(heads, torch.tensor([at, other]))
        return float(turned[0, 0, 0] @ turned[1, 1, 0])

    assert product(7, 3) == pytest.approx(product(54, 50), abs=1e-5)
    assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-3)


def reference(encoder: ModernTransformer, x: Tensor) -> Tensor:
    """One sequence [L, D] by the formulas, step by step."""
    for block in encoder.blocks:
        heads = block.projection(block.attention_norm(x)).unflatten(-1, (3, block.num_heads, -1))
        query, key, value = encoder.rotation(heads, torch.arange(len(x))).unbind(1)
        rows = []
        for step in range(len(x)):
            first = 0 if block.window is None else max(0, step - block.window + 1)
            scores = torch.einsum("he,lhe->hl", query[step], key[first : step + 1]) / math.sqrt(query.shape[-1])
            rows.append(torch.einsum("hl,lhe->he", scores.softmax(1), value[first : step + 1]).flatten())
        x = x + torch.sigmoid(block.attention_gate(x)) * block.output(torch.stack(rows))
        gate, hidden = block.expand(block.feed_norm(x)).chunk(2, dim=-1)
        x = x + torch.sigmoid(block.feed_gate(x)) * block.contract(F.silu(gate) * hidden)
    return x / x.square().mean(-1, keepdim=True).sqrt() * encoder.norm.weight


@pytest.mark.parametrize("window", [None, 1, 4])
def test_equals_the_formulas(window: int | None) -> None:
    encoder = ModernTransformer(8, 30, num_blocks=2, num_heads=2, expansion=2, window=window).eval()
    sequences = [torch.randn(length, 8) for length in (1, 31, 7)]
    states = encoder(torch.cat(sequences), layout(1, 31, 7)).split([1, 31, 7])
    for tokens, ours in zip(sequences, states, strict=True):
        torch.testing.assert_close(ours, reference(encoder, tokens), atol=1e-5, rtol=1e-4)


def test_a_block_reaches_as_far_as_its_window() -> None:
    for num_blocks, reach in ((1, 4), (2, 7)):
        encoder = ModernTransformer(8, 30, num_blocks=num_blocks, window=4).eval()
        tokens = torch.randn(20, 8, requires_grad=True)
        encoder(tokens, layout(20))[15].sum().backward()
        assert tokens.grad is not None
        read = tokens.grad.abs().amax(1).nonzero().flatten().tolist()
        assert read == list(range(16 - reach, 16))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="num_heads: found 2, expected a divisor of half of dim 6"):
        ModernTransformer(6, 30, num_heads=2)
    with pytest.raises(ValueError, match="window: found 0"):
        ModernTransformer(8, 30, window=0)
