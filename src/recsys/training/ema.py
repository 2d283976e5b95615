"""Averaged weights: what is evaluated and kept is smoother than the last step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class EMA(WeightAveraging):
    """An exponential moving average of the weights, over a share of the steps so far and no more than `decay` allows.

    The decay of step n is `min(decay, (1 + n) / (10 + n))`, as in TensorFlow's `ExponentialMovingAverage` with
    `num_updates`: about the last ninth of training counts, however many steps an epoch has, so that neither the first
    epochs nor small data are averaged over weights that know nothing. Where training began with the weights of an
    earlier run, n goes on from that run's steps: what it begins with is as good as averaged already.

    Args:
        decay: of late steps.

    Attributes:
        steps_before: of the run whose weights training began with.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema.decay: found {decay}, expected a number from 0 to below 1")

        self.steps_before = 0

        @torch.no_grad()
        def average(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
            n = int(num_averaged) + self.steps_before
            weight = 1.0 - min(decay, (1.0 + n) / (10.0 + n))
            torch._foreach_lerp_(list(averaged), list(current), weight)

        # Buffers are copied, not averaged: they hold integers.
        super().__init__(use_buffers=False, multi_avg_fn=average)
