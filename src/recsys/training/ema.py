"""An exponential moving average of the weights, which is evaluated and saved in the place of the last step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class EMA(WeightAveraging):
    """An exponential moving average of the weights with a decay that grows during training.

    The decay of step n is `min(decay, (1 + n) / (10 + n))`, as in TensorFlow's `ExponentialMovingAverage` with
    `num_updates`. So about the last ninth of training counts, whatever the number of steps in an epoch, and untrained
    weights do not enter the average in the first epochs or on small data. If training starts from the weights of an
    earlier run, n continues from the steps of that run, because those weights are trained already.

    Args:
        decay: highest decay, reached after many steps.

    Attributes:
        steps_before: steps of the run whose weights training started from.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay: found {decay}, expected a number from 0 to below 1")

        self.steps_before = 0

        @torch.no_grad()
        def average(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
            n = int(num_averaged) + self.steps_before
            weight = 1.0 - min(decay, (1.0 + n) / (10.0 + n))
            torch._foreach_lerp_(list(averaged), list(current), weight)

        # Buffers are copied, not averaged: they hold integers.
        super().__init__(use_buffers=False, multi_avg_fn=average)
