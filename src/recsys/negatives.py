"""Which items a positive is compared with, and how probable each was as a negative.

Shapes: P targets of the step (of all processes), C candidates.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from recsys.data.batch import RaggedTensor

# Log probability of what is never drawn.
_LEAST = math.log(1e-12)


class Catalogue(NamedTuple):
    """What samplers know of the data.

    Attributes:
        probabilities: float64 [N + 1], how probable each item is as a target (indexed by item_idx).
        corpus: int64 [N], items that uniform draws come from.
    """

    probabilities: Tensor
    corpus: Tensor


class NegativeSampler(Protocol):
    """A proposal that candidates are drawn from."""

    uses_targets: bool
    """Whether targets of the batch are candidates for each other."""

    max_targets: int | None
    """Most targets of the batch that become candidates."""

    def draw(self, generator: torch.Generator) -> Tensor:
        """Items drawn beside the batch, int64 [S]; equal on all processes for an equal generator."""
        ...

    def log_q(self, item_idx: Tensor, num_targets: int) -> Tensor:
        """Log probability that one candidate is the item, float32 of the shape of `item_idx`.

        `num_targets` of the candidates are targets of the batch.
        """
        ...


class InBatch:
    """The other targets of the batch (of all processes): negatives as popular as the training events.

    Args:
        catalogue: of the data.
        max_targets: a random subset of the batch's targets serves as candidates when there are more.
    """

    uses_targets = True

    def __init__(self, catalogue: Catalogue, max_targets: int | None = 2048) -> None:
        self.max_targets = max_targets
        self._log_q = _log(catalogue.probabilities)

    def draw(self, generator: torch.Generator) -> Tensor:
        """None."""
        return torch.zeros(0, dtype=torch.int64, device=generator.device)

    def log_q(self, item_idx: Tensor, num_targets: int) -> Tensor:  # noqa: ARG002
        """Log probability of the item as a target."""
        return self._log_q.to(item_idx.device)[item_idx]


class Uniform:
    """Items drawn uniformly from the corpus, the same for all rows.

    Args:
        catalogue: of the data.
        num_negatives: items drawn a step.
    """

    uses_targets = False
    max_targets = None

    def __init__(self, catalogue: Catalogue, num_negatives: int = 256) -> None:
        self.corpus, self.num_negatives = catalogue.corpus, num_negatives

    def draw(self, generator: torch.Generator) -> Tensor:
        """`num_negatives` items of the corpus, with replacement."""
        rows = torch.randint(len(self.corpus), (self.num_negatives,), generator=generator, device=generator.device)
        return self.corpus.to(rows.device)[rows]

    def log_q(self, item_idx: Tensor, num_targets: int) -> Tensor:  # noqa: ARG002
        """Minus log N for every item."""
        return torch.full(item_idx.shape, 1.0 / len(self.corpus), device=item_idx.device).log()


class Popularity:
    """Items drawn by a power of their popularity, `Q(i) ~ Q_target(i)^exponent`, the same for all rows.

    Between uniform (0) and as targets are (1); 0.75 is word2vec's (Mikolov et al. 2013, section 2.2). Items of the
    corpus without training events are drawn as if they had had one tenth of the rarest one's.

    Args:
        catalogue: of the data.
        num_negatives: items drawn a step.
        exponent: of the popularity.
    """

    uses_targets = False
    max_targets = None

    def __init__(self, catalogue: Catalogue, num_negatives: int = 256, exponent: float = 0.75) -> None:
        self.corpus, self.num_negatives = catalogue.corpus, num_negatives
        popular = catalogue.probabilities[self.corpus]
        seen = popular > 0
        floor = popular[seen].min() / 10 if bool(seen.any()) else 1.0
        weights = torch.where(seen, popular, floor) ** exponent
        self._cumulative = weights.cumsum(0) / weights.sum()
        self._log_q = torch.full((len(catalogue.probabilities),), -torch.inf)
        self._log_q[self.corpus] = (weights / weights.sum()).log().float()

    def draw(self, generator: torch.Generator) -> Tensor:
        """`num_negatives` items of the corpus, with replacement."""
        points = torch.rand(self.num_negatives, generator=generator, device=generator.device, dtype=torch.float64)
        rows = torch.searchsorted(self._cumulative.to(points.device), points).clamp_(max=len(self.corpus) - 1)
        return self.corpus.to(rows.device)[rows]

    def log_q(self, item_idx: Tensor, num_targets: int) -> Tensor:  # noqa: ARG002
        """Log probability of one draw."""
        return self._log_q.to(item_idx.device)[item_idx].clamp(min=_LEAST)


class Mixed:
    """Targets of the batch and uniform draws in one softmax (mixed negative sampling, Yang et al. 2020).

    With B targets and B' draws the proposal is `Q(i) = (B Q_target(i) + B' / N) / (B + B')`.

    Args:
        catalogue: of the data.
        num_negatives: B', items drawn a step.
        max_targets: as for `InBatch`.
    """

    uses_targets = True

    def __init__(self, catalogue: Catalogue, num_negatives: int = 256, max_targets: int | None = 2048) -> None:
        self.max_targets = max_targets
        self.probabilities = catalogue.probabilities
        self._uniform = Uniform(catalogue, num_negatives)

    def draw(self, generator: torch.Generator) -> Tensor:
        """B' items of the corpus, with replacement."""
        return self._uniform.draw(generator)

    def log_q(self, item_idx: Tensor, num_targets: int) -> Tensor:
        """Log probability of the item in the mixture."""
        drawn = self._uniform.num_negatives
        popular = self.probabilities.to(item_idx.device)[item_idx]
        return _log((num_targets * popular + drawn / len(self._uniform.corpus)) / (num_targets + drawn))


def positives_among(candidates: Tensor, positives: RaggedTensor) -> Tensor:
    """Where a candidate is one of the history's own positives: bool [H, C].

    Covers accidental hits as well: a target is a training item of its own user.
    """
    order = candidates.argsort()
    ordered = candidates[order]
    lengths = positives.offsets.diff()
    history = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    left = torch.searchsorted(ordered, positives.values)
    counts = torch.searchsorted(ordered, positives.values, right=True) - left
    # A positive may stand in several columns; they are neighbours in `ordered`.
    run = torch.arange(int(counts.sum()), device=counts.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    mask = torch.zeros(len(lengths), len(candidates), dtype=torch.bool, device=candidates.device)
    mask[history.repeat_interleave(counts), order[left.repeat_interleave(counts) + run]] = True
    return mask


def probability_of_positives(log_q: Tensor, positives: RaggedTensor) -> Tensor:
    """Probability that one draw is a positive of the history's user; float32 [H].

    Args:
        log_q: [M] of `positives.values`.
        positives: items of H users, repeats allowed (they count once).
    """
    lengths = positives.offsets.diff()
    num_histories = len(lengths)
    history = torch.arange(num_histories, device=lengths.device).repeat_interleave(lengths)
    if len(history) == 0:
        return torch.zeros(num_histories, device=lengths.device)
    key = history * (int(positives.values.max()) + 1) + positives.values
    key, order = key.sort()
    fresh = torch.ones_like(key, dtype=torch.bool)
    fresh[1:] = key[1:] != key[:-1]
    probability = torch.where(fresh, log_q[order].exp(), 0.0)
    return torch.zeros(num_histories, device=log_q.device).index_add_(0, history[order], probability)


def _log(probabilities: Tensor) -> Tensor:
    # Items that are never drawn have no column to correct; the floor keeps their own row finite.
    return probabilities.log().float().clamp(min=_LEAST)
