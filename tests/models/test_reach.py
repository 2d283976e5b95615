from __future__ import annotations

import numpy as np
import torch

from recsys.models.encoders import MeanPooling
from recsys.models.fourier import BSARec
from recsys.models.hstu import HSTU
from recsys.models.layout import Packed
from recsys.models.modern import ModernTransformer
from recsys.models.reach import LongAndRecent


def test_the_gate_chooses_by_dimension() -> None:
    long, recent = MeanPooling(4), ModernTransformer(4, 20, window=2)
    encoder = LongAndRecent(4, long=long, recent=recent).eval()
    torch.nn.init.zeros_(encoder.gate.weight)
    encoder.gate.bias.data = torch.tensor([-50.0, 50.0, 0.0, float(np.log(3))])
    tokens, layout = torch.randn(15, 4), Packed(np.array([15]), torch.device("cpu"))
    far, near = long(tokens, layout), recent(tokens, layout)
    # Gates 0, 1, 1/2 and 3/4.
    expected = torch.stack(
        [far[:, 0], near[:, 1], (far + near)[:, 2] / 2, far[:, 3] / 4 + near[:, 3] * 3 / 4],
        dim=1,
    )
    torch.testing.assert_close(encoder(tokens, layout), expected)


def test_the_long_encoder_reads_events_before_the_window() -> None:
    encoder = LongAndRecent(4, long=MeanPooling(4), recent=ModernTransformer(4, 20, num_blocks=1, window=2)).eval()
    encoder.gate.weight.data[:, :4] = 0.0
    tokens, layout = torch.randn(15, 4, requires_grad=True), Packed(np.array([15]), torch.device("cpu"))
    encoder(tokens, layout)[14].sum().backward()
    assert tokens.grad is not None
    size = tokens.grad.abs().amax(1)
    assert bool((size[:13] > 0).all())
    # The mean treats all tokens alike; what differs comes from the window.
    torch.testing.assert_close(tokens.grad[:13], tokens.grad[:1].expand(13, 4))
    assert not torch.allclose(tokens.grad[13], tokens.grad[0])


def test_it_is_causal_and_timed_like_its_parts() -> None:
    causal = LongAndRecent(4, long=MeanPooling(4), recent=ModernTransformer(4, 20))
    assert (causal.is_causal, causal.reads_time) == (True, False)
    timed = LongAndRecent(4, long=MeanPooling(4), recent=HSTU(4, 20))
    assert (timed.is_causal, timed.reads_time) == (True, True)
    assert not LongAndRecent(4, long=MeanPooling(4), recent=BSARec(4, 20)).is_causal
