"""Probability that one target is a given item, counted in the data or estimated from the steps so far.

Estimators keep their state in buffers, so that checkpoints hold it and a resumed run continues with it. Every process
updates its estimator with the targets of all processes, so the estimators stay equal.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

# Items are hashed modulo a prime, by multiplication within int64.
_PRIME = (1 << 31) - 1


class Frequency(Protocol):
    """Probabilities of targets. A `torch.nn.Module`.

    Attributes:
        is_estimated: true if the probabilities are estimated from the targets of the steps so far.
    """

    is_estimated: bool

    def update(self, target_idx: Tensor) -> None:
        """Read the targets of a step, int64 [P], of all processes."""
        ...

    def probability(self, item_idx: Tensor) -> Tensor:
        """Return the probability that one target is the item; floats of the shape of `item_idx`, at least 0."""
        ...


class ExactFrequency(nn.Module):
    """Probabilities counted in the training data, where every event is a target once an epoch.

    Args:
        probabilities: float64 [N + 1], probability of each item as a target, indexed by item_idx.
    """

    is_estimated = False
    probabilities: Tensor

    def __init__(self, probabilities: Tensor) -> None:
        super().__init__()
        # Not part of a checkpoint, because they are counted again from the data.
        self.register_buffer("probabilities", probabilities, persistent=False)

    def update(self, target_idx: Tensor) -> None:
        """Do nothing."""

    def probability(self, item_idx: Tensor) -> Tensor:
        """Return the share of the item in the targets of an epoch."""
        return self.probabilities[item_idx]


class StreamingFrequency(nn.Module):
    """Probabilities from the mean number of steps between two that hold the item (Yi et al. 2019, algorithm 2).

    An item is hashed to a bucket that holds the last step A and the mean gap E. If step t holds the item,
    `E <- (1 - rate) E + rate (t - A)` and `A <- t`. A step holds the item with probability 1 / E. With several hashes
    the largest gap counts, because collisions make gaps shorter (section 4).

    A sampled softmax corrects for the probability of one target, q. A step of B targets holds the item with probability
    `1 / E = 1 - (1 - q)^B`, which is solved for q with the mean B. For an item of nearly every step the estimate of q
    is poor: the mean of about 1 / rate gaps cannot tell a probability above 1 - rate from certainty, so 1 / E is at
    most 1 - rate.

    Memory: 8 bytes for each bucket and hash.

    Args:
        num_buckets: buckets of each hash.
        num_hashes: number of hashes.
        rate: weight of the newest gap.
        initial_gap: E of an empty bucket.
    """

    is_estimated = True
    last: Tensor
    gaps: Tensor
    step: Tensor
    num_targets: Tensor
    coefficients: Tensor

    def __init__(
        self, num_buckets: int = 1 << 20, num_hashes: int = 1, *, rate: float = 0.05, initial_gap: float = 100.0
    ) -> None:
        super().__init__()
        _check_sizes(num_buckets=num_buckets, num_hashes=num_hashes)
        if not 0 < rate < 1:
            raise ValueError(f"rate: found {rate}, expected a number between 0 and 1")
        if initial_gap < 1:
            raise ValueError(f"initial_gap: found {initial_gap}, expected at least 1")
        self.num_buckets, self.rate = num_buckets, rate
        self.register_buffer("last", torch.zeros(num_hashes, num_buckets, dtype=torch.int32))
        self.register_buffer("gaps", torch.full((num_hashes, num_buckets), float(initial_gap)))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("num_targets", torch.zeros((), dtype=torch.int64))
        self.register_buffer("coefficients", _coefficients(num_hashes), persistent=False)

    def update(self, target_idx: Tensor) -> None:
        """Count one step and update the gaps of its items. Repeats within a step do not count."""
        self.step += 1
        self.num_targets += target_idx.numel()
        buckets = _buckets(target_idx, self.coefficients, num_buckets=self.num_buckets)
        gaps, last = self.gaps.gather(1, buckets), self.last.gather(1, buckets)
        # Items in the same bucket write the same values.
        self.gaps.scatter_(1, buckets, gaps + self.rate * (self.step - last - gaps))
        self.last.scatter_(1, buckets, self.step.to(self.last.dtype).expand_as(last))

    def probability(self, item_idx: Tensor) -> Tensor:
        """Return `1 - (1 - 1 / E)^(1 / B)`."""
        buckets = _buckets(item_idx.flatten(), self.coefficients, num_buckets=self.num_buckets)
        held = (1.0 / self.gaps.gather(1, buckets).amax(0)).clamp(max=1.0 - self.rate)
        mean_targets = self.num_targets / self.step.clamp(min=1)
        return -torch.expm1(torch.log1p(-held) / mean_targets.clamp(min=1.0)).view(item_idx.shape)


class CountMinFrequency(nn.Module):
    """Counts of all steps so far in a count-min sketch (Cormode and Muthukrishnan 2005).

    A count is the least of several hashed rows, and never below the true count. Pinterest uses such a sketch over the
    ids of all devices for its logQ correction.

    Memory: 4 bytes for each cell.

    Args:
        width: cells of a row.
        depth: number of rows, each with its own hash.
    """

    is_estimated = True
    counts: Tensor
    num_targets: Tensor
    coefficients: Tensor

    def __init__(self, width: int = 1 << 20, depth: int = 2) -> None:
        super().__init__()
        _check_sizes(width=width, depth=depth)
        self.width = width
        self.register_buffer("counts", torch.zeros(depth, width, dtype=torch.int32))
        self.register_buffer("num_targets", torch.zeros((), dtype=torch.int64))
        self.register_buffer("coefficients", _coefficients(depth), persistent=False)

    def update(self, target_idx: Tensor) -> None:
        """Count every target."""
        self.num_targets += target_idx.numel()
        buckets = _buckets(target_idx, self.coefficients, num_buckets=self.width)
        self.counts.scatter_add_(1, buckets, torch.ones_like(buckets, dtype=self.counts.dtype))

    def probability(self, item_idx: Tensor) -> Tensor:
        """Return the least count divided by the number of targets so far."""
        buckets = _buckets(item_idx.flatten(), self.coefficients, num_buckets=self.width)
        least = self.counts.gather(1, buckets).amin(0)
        return (least / self.num_targets.clamp(min=1)).view(item_idx.shape)


def _coefficients(num_hashes: int) -> Tensor:
    """Return a and b of hashes `(a x + b) mod p`, int64 [2, num_hashes]. Checkpoints rely on fixed values."""
    generator = torch.Generator().manual_seed(20190916)
    return torch.randint(1, _PRIME, (2, num_hashes), generator=generator)


def _buckets(item_idx: Tensor, coefficients: Tensor, *, num_buckets: int) -> Tensor:
    """Return the bucket of each item under each hash; int64 [num_hashes, len(item_idx)]."""
    factor, offset = coefficients.unsqueeze(2)
    buckets: Tensor = (factor * item_idx + offset) % _PRIME % num_buckets
    return buckets


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: found {size}, expected at least 1")
