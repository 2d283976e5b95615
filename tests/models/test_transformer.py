"""The transformer against its formulas, token by token, with norms before and after and with a running mean."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.models.encoders import Transformer
from recsys.models.layout import Packed

DIM, LONGEST, HEADS = 8, 12, 2


def layout(*lengths: int) -> Packed:
    return Packed(np.array(lengths, np.int64), torch.device("cpu"))


def attend(block: Any, x: Tensor) -> Tensor:
    query, key, value = block.projection(x).unflatten(-1, (3, HEADS, -1)).unbind(1)
    rows = []
    for step in range(len(x)):
        scores = torch.einsum("he,lhe->hl", query[step], key[: step + 1]) / math.sqrt(DIM / HEADS)
        rows.append(torch.einsum("hl,lhe->he", scores.softmax(1), value[: step + 1]).flatten())
    return block.output(torch.stack(rows))  # type: ignore[no-any-return]


def smooth(block: Any, x: Tensor) -> Tensor:
    low = torch.stack([x[: step + 1].mean(0) for step in range(len(x))])
    return low + block.high_gain**2 * (x - low)  # type: ignore[no-any-return]


def reference(encoder: Any, tokens: Tensor, *, norm: str, share: float) -> Tensor:
    """One sequence [L, D] by the formulas."""
    x = tokens + encoder.position.weight[: len(tokens)]
    x = encoder.norm(x) if norm == "after" else x
    for block in encoder.blocks:

        def feed(y: Tensor, block: Any = block) -> Tensor:
            return block.contract(F.gelu(block.expand(y)))  # type: ignore[no-any-return]

        if norm == "after":
            mixed = block.attention_norm(x + attend(block, x))
            if share:
                mixed = share * block.mean_norm(x + smooth(block, x)) + (1 - share) * mixed
            x = block.feed_norm(mixed + feed(mixed))
        else:
            y = block.attention_norm(x)
            x = x + (share * smooth(block, y) + (1 - share) * attend(block, y) if share else attend(block, y))
            x = x + feed(block.feed_norm(x))
    return x if norm == "after" else encoder.norm(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("share", [0.0, 0.7])
@pytest.mark.parametrize("norm", ["before", "after"])
def test_equals_the_formulas(norm: Any, share: float) -> None:
    encoder = Transformer(DIM, LONGEST, num_heads=HEADS, norm=norm, running_mean=share).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    sequences = [torch.randn(n, DIM) for n in (LONGEST + 1, 1, 5)]
    states = encoder(torch.cat(sequences), layout(LONGEST + 1, 1, 5)).split([LONGEST + 1, 1, 5])
    for tokens, ours in zip(sequences, states, strict=True):
        torch.testing.assert_close(ours, reference(encoder, tokens, norm=norm, share=share), atol=1e-4, rtol=1e-4)


def test_without_a_running_mean_the_weights_are_those_of_earlier_checkpoints() -> None:
    names = {name.split(".", 2)[-1] for name, _ in Transformer(DIM, LONGEST).blocks.named_parameters(prefix="blocks")}
    parts = ("attention_norm", "feed_norm", "projection", "output", "expand", "contract")
    assert names == {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"norm": "post"}, "norm: found 'post', expected 'before' or 'after'"),
        ({"running_mean": 1.0}, "running_mean: found 1.0, expected a share of at least 0 and below 1"),
        ({"running_mean": -0.1}, "running_mean: found -0.1"),
        ({"activation": "tanh"}, "activation: found 'tanh'"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transformer(DIM, LONGEST, **setting)
