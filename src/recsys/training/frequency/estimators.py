"""How probable one target is the item, by what is known of it: the data, or the steps that have gone by.

Estimators keep their state in buffers, so that it lies in the checkpoint and a resumed run goes on with it. Every
process tells its own the targets of all processes, so they stay equal.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

# Items are hashed modulo a prime, by multiplication within int64.
_PRIME = (1 << 31) - 1


class Frequency(Protocol):
    """Where the probabilities of targets come from."""

    def update(self, target_idx: Tensor) -> None:
        """Take note of the targets of a step, int64 [P], of all processes."""
        ...

    def probability(self, item_idx: Tensor) -> Tensor:
        """Probability that one target is the item; floats of the shape of `item_idx`, not below 0."""
        ...


class ExactFrequency(nn.Module):
    """Counted in the training data: every event is a target once an epoch.

    Args:
        probabilities: float64 [N + 1], of each item as a target (indexed by item_idx).
    """

    probabilities: Tensor

    def __init__(self, probabilities: Tensor) -> None:
        super().__init__()
        # The data has them: they are no part of a checkpoint.
        self.register_buffer("probabilities", probabilities, persistent=False)

    def update(self, target_idx: Tensor) -> None:
        """Nothing: the data is known."""

    def probability(self, item_idx: Tensor) -> Tensor:
        """Share of the item in the targets of an epoch."""
        return self.probabilities[item_idx]


class StreamingFrequency(nn.Module):
    """Estimated from the mean number of steps between two that hold the item (Yi et al. 2019, algorithm 2).

    A hashed item finds its bucket's last step A and mean gap E. Where step t holds it, `E <- (1 - rate) E +
    rate (t - A)` and `A <- t`; a step holds it with the probability 1 / E. With several hashes the largest gap counts,
    since collisions make gaps shorter (section 4).

    What a sampled softmax corrects for is the probability of one target, q. A step of B targets holds the item with
    `1 / E = 1 - (1 - q)^B`, which is solved for q with the mean B. An item of nearly every step says little of its q:
    the mean of some 1 / rate gaps tells nothing below `rate` from certainty, so 1 / E counts as 1 - rate at most.

    Memory: 8 bytes for each bucket and hash.

    Args:
        num_buckets: of each hash.
        num_hashes: arrays, each with a hash of its own.
        rate: weight of the newest gap.
        initial_gap: E of a bucket that has seen nothing.
    """

    last: Tensor
    gaps: Tensor
    step: Tensor
    num_targets: Tensor
    coefficients: Tensor

    def __init__(
        self, num_buckets: int = 1 << 20, num_hashes: int = 1, rate: float = 0.05, initial_gap: float = 100.0
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
        """One step more; how often it holds an item does not matter."""
        self.step += 1
        self.num_targets += target_idx.numel()
        buckets = _buckets(target_idx, self.coefficients, self.num_buckets)
        gaps, last = self.gaps.gather(1, buckets), self.last.gather(1, buckets)
        # Several items of a bucket write the same.
        self.gaps.scatter_(1, buckets, gaps + self.rate * (self.step - last - gaps))
        self.last.scatter_(1, buckets, self.step.to(self.last.dtype).expand_as(last))

    def probability(self, item_idx: Tensor) -> Tensor:
        """`1 - (1 - 1 / E)^(1 / B)`."""
        buckets = _buckets(item_idx.flatten(), self.coefficients, self.num_buckets)
        held = (1.0 / self.gaps.gather(1, buckets).amax(0)).clamp(max=1.0 - self.rate)
        mean_targets = self.num_targets / self.step.clamp(min=1)
        return -torch.expm1(torch.log1p(-held) / mean_targets.clamp(min=1.0)).view(item_idx.shape)


class CountMinFrequency(nn.Module):
    """Counted in hashed rows over all steps so far; the least of the rows counts (Cormode and Muthukrishnan 2005).

    It never tells less than the true count. Pinterest corrects by such a sketch over the ids of all devices.

    Memory: 4 bytes for each cell.

    Args:
        width: cells of a row.
        depth: rows, each with a hash of its own.
    """

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
        buckets = _buckets(target_idx, self.coefficients, self.width)
        self.counts.scatter_add_(1, buckets, torch.ones_like(buckets, dtype=self.counts.dtype))

    def probability(self, item_idx: Tensor) -> Tensor:
        """Least count over the number of targets so far."""
        buckets = _buckets(item_idx.flatten(), self.coefficients, self.width)
        least = self.counts.gather(1, buckets).amin(0)
        return (least / self.num_targets.clamp(min=1)).view(item_idx.shape)


def _coefficients(num_hashes: int) -> Tensor:
    """Of hashes `(a x + b) mod p`, the same for ever; int64 [2, num_hashes]."""
    generator = torch.Generator().manual_seed(20190916)
    return torch.randint(1, _PRIME, (2, num_hashes), generator=generator)


def _buckets(item_idx: Tensor, coefficients: Tensor, num_buckets: int) -> Tensor:
    """Bucket of each item under each hash; int64 [num_hashes, len(item_idx)]."""
    factor, offset = coefficients.unsqueeze(2)
    buckets: Tensor = (factor * item_idx + offset) % _PRIME % num_buckets
    return buckets


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: found {size}, expected at least 1")
