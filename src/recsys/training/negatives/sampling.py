"""Protocol of a sampler of negatives, and the inputs that samplers are built from.

Shapes: P targets of the step (of all processes), C candidates, S items drawn, N corpus, D dim.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from recsys.training.frequency import Frequency

# Log probability of an item that is never drawn.
LEAST = math.log(1e-12)


class SamplerInputs(NamedTuple):
    """Data and model that candidates are drawn for.

    Attributes:
        probabilities: float64 [N + 1], probability of each item as a target, indexed by item_idx.
        corpus: int64 [N], items that uniform draws come from.
        frequency: probabilities of targets for the logQ correction.
    """

    probabilities: Tensor
    corpus: Tensor
    frequency: Frequency


class NegativeSampler(Protocol):
    """A source of candidates and their probabilities. A `torch.nn.Module`, whose buffers are saved in checkpoints."""

    @property
    def frequency(self) -> Frequency | None:
        """Probabilities of targets; None if the targets of the batch are not candidates for each other."""
        ...

    @property
    def max_targets(self) -> int | None:
        """Most targets of the batch that become candidates; None for all."""
        ...

    def draw(self, generator: torch.Generator, target_idx: Tensor) -> Tensor:
        """Return the items drawn beside the targets of the batch, int64 [S].

        Args:
            generator: source of randomness with the same state on all processes.
            target_idx: int64 [P], targets of all processes, in any order. The result must not depend on the order.
        """
        ...

    def log_q(self, item_idx: Tensor, num_targets: int) -> Tensor:
        """Return the log probability that one candidate is the item, float32 of the shape of `item_idx`.

        Args:
            item_idx: int64, items of any shape.
            num_targets: number of candidates that are targets of the batch.
        """
        ...


def at_least(lowest: int, **values: int | None) -> None:
    """Raise a `ValueError` that names an argument below `lowest`; None is not checked."""
    for name, value in values.items():
        if value is not None and value < lowest:
            raise ValueError(f"{name}: found {value}, expected at least {lowest}")


def log(probabilities: Tensor) -> Tensor:
    """Return float32 logarithms that are at least `LEAST`: an item that is never drawn can still be a row's target."""
    return probabilities.log().float().clamp(min=LEAST)
