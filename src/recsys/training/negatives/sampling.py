"""What a sampler is told of the data, and what a training step asks of it.

Shapes: P targets of the step (of all processes), C candidates, S items drawn, N corpus, D dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from recsys.core.errors import UserError
from recsys.training.frequency import Frequency
from recsys.training.negatives.bank import Bank

# Log probability of what is never drawn.
LEAST = math.log(1e-12)

# For a run folder and k: int64 [N + 1, k], item_idx of the k nearest other items of each in the space of that run, 0
# where there are fewer.
NearestItems = Callable[[str, int], Tensor]


def no_earlier_run(run: str, num_neighbors: int) -> Tensor:
    """For those who open no run: there is nothing to look up."""
    raise UserError(f"negatives.run={run}: nothing here opens earlier runs, to find {num_neighbors} neighbours")


class SamplerInputs(NamedTuple):
    """What samplers know of the data and the model.

    Attributes:
        probabilities: float64 [N + 1], how probable each item is as a target (indexed by item_idx).
        corpus: int64 [N], items that uniform draws come from.
        frequency: where the correction of targets takes its probabilities from.
        dim: D, width of item embeddings.
        nearest_items: looks up neighbours in the item space of an earlier run.
    """

    probabilities: Tensor
    corpus: Tensor
    frequency: Frequency
    dim: int
    nearest_items: NearestItems = no_earlier_run


class NegativeSampler(Protocol):
    """A proposal that candidates are drawn from. A `torch.nn.Module`: what it remembers lies in the checkpoint."""

    @property
    def frequency(self) -> Frequency | None:
        """Probabilities of targets; None where the targets of the batch are no candidates for each other."""
        ...

    @property
    def max_targets(self) -> int | None:
        """Most targets of the batch that become candidates; None for all."""
        ...

    @property
    def bank(self) -> Bank | None:
        """Targets of earlier steps, which are candidates as well."""
        ...

    @property
    def hardest(self) -> int | None:
        """How many candidates a row keeps, those that score best; None for all."""
        ...

    def draw(self, generator: torch.Generator, target_idx: Tensor) -> Tensor:
        """Items drawn beside the targets of the batch and the bank, int64 [S].

        Equal on all processes for an equal generator and the same targets `target_idx` int64 [P], in any order.
        """
        ...

    def log_q(self, item_idx: Tensor, num_targets: int) -> Tensor:
        """Log probability that one candidate is the item, float32 of the shape of `item_idx`.

        `num_targets` of the candidates are targets, of the batch or the bank.
        """
        ...


def log(probabilities: Tensor) -> Tensor:
    """Logarithms in float32, finite: items that are never drawn have no column to correct, but rows of their own."""
    return probabilities.log().float().clamp(min=LEAST)
