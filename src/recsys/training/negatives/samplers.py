"""Samplers that take targets of the batch, draws from the corpus, or a mixture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.training.negatives.sampling import LEAST, SamplerInputs, at_least, log


class InBatchNegatives(nn.Module):
    """The other targets of the batch, of all processes, as candidates (Yi et al. 2019, section 3).

    A candidate is as popular as the training events.

    Args:
        inputs: data and model that candidates are drawn for.
        max_targets: most targets that become candidates. If the batch has more, a random subset is taken.
    """

    def __init__(self, inputs: SamplerInputs, max_targets: int | None = 2048) -> None:
        super().__init__()
        at_least(1, max_targets=max_targets)
        self.max_targets, self.frequency = max_targets, inputs.frequency

    def draw(self, generator: torch.Generator, target_idx: Tensor) -> Tensor:  # noqa: ARG002
        """Return no items."""
        return target_idx[:0]

    def log_q(self, item_idx: Tensor, num_targets: int) -> Tensor:  # noqa: ARG002
        """Return the log probability of the item as a target."""
        return log(self.frequency.probability(item_idx))


class UniformNegatives(nn.Module):
    """Items drawn uniformly from the corpus, the same for all rows.

    Args:
        inputs: data and model that candidates are drawn for.
        num_negatives: items drawn a step.
    """

    frequency = None
    max_targets = None
    corpus: Tensor

    def __init__(self, inputs: SamplerInputs, num_negatives: int = 256) -> None:
        super().__init__()
        at_least(1, num_negatives=num_negatives)
        self.num_negatives = num_negatives
        self.register_buffer("corpus", inputs.corpus, persistent=False)

    def draw(self, generator: torch.Generator, target_idx: Tensor) -> Tensor:  # noqa: ARG002
        """Return `num_negatives` items of the corpus, with replacement."""
        rows = torch.randint(len(self.corpus), (self.num_negatives,), generator=generator, device=generator.device)
        return self.corpus[rows]

    def log_q(self, item_idx: Tensor, num_targets: int) -> Tensor:  # noqa: ARG002
        """Return minus log N for every item."""
        return torch.full(item_idx.shape, 1.0 / len(self.corpus), device=item_idx.device).log()


class PopularityNegatives(nn.Module):
    """Items drawn with a probability of `Q(i) ~ Q_target(i)^exponent`, the same for all rows.

    An exponent of 0 gives uniform draws, 1 the distribution of targets, and 0.75 is that of word2vec (Mikolov et al.
    2013, section 2.2). An item of the corpus without training events counts a tenth of the rarest item with events.

    Args:
        inputs: data and model that candidates are drawn for.
        num_negatives: items drawn a step.
        exponent: exponent of the popularity.
    """

    frequency = None
    max_targets = None
    corpus: Tensor
    cumulative: Tensor
    log_probabilities: Tensor

    def __init__(self, inputs: SamplerInputs, num_negatives: int = 256, *, exponent: float = 0.75) -> None:
        super().__init__()
        at_least(1, num_negatives=num_negatives)
        self.num_negatives = num_negatives
        popular = inputs.probabilities[inputs.corpus]
        seen = popular > 0
        floor = popular[seen].min() / 10 if bool(seen.any()) else 1.0
        weights = torch.where(seen, popular, floor) ** exponent
        log_probabilities = torch.full((len(inputs.probabilities),), LEAST)
        log_probabilities[inputs.corpus] = log(weights / weights.sum())
        self.register_buffer("corpus", inputs.corpus, persistent=False)
        self.register_buffer("cumulative", weights.cumsum(0) / weights.sum(), persistent=False)
        self.register_buffer("log_probabilities", log_probabilities, persistent=False)

    def draw(self, generator: torch.Generator, target_idx: Tensor) -> Tensor:  # noqa: ARG002
        """Return `num_negatives` items of the corpus, with replacement."""
        points = torch.rand(self.num_negatives, generator=generator, device=generator.device, dtype=torch.float64)
        rows = torch.searchsorted(self.cumulative, points).clamp_(max=len(self.corpus) - 1)
        return self.corpus[rows]

    def log_q(self, item_idx: Tensor, num_targets: int) -> Tensor:  # noqa: ARG002
        """Return the log probability of one draw."""
        return self.log_probabilities[item_idx]


class MixedNegatives(nn.Module):
    """Targets of the batch and uniform draws in one softmax (mixed negative sampling, Yang et al. 2020).

    With B targets and B' draws the proposal is `Q(i) = (B Q_target(i) + B' / N) / (B + B')`.

    Args:
        inputs: data and model that candidates are drawn for.
        num_negatives: B', items drawn a step.
        max_targets: most targets that become candidates, as in `InBatchNegatives`.
    """

    def __init__(self, inputs: SamplerInputs, num_negatives: int = 256, *, max_targets: int | None = 2048) -> None:
        super().__init__()
        at_least(1, max_targets=max_targets)
        self.max_targets, self.frequency = max_targets, inputs.frequency
        self.uniform = UniformNegatives(inputs, num_negatives)

    def draw(self, generator: torch.Generator, target_idx: Tensor) -> Tensor:
        """Return B' items of the corpus, with replacement."""
        return self.uniform.draw(generator, target_idx)

    def log_q(self, item_idx: Tensor, num_targets: int) -> Tensor:
        """Return the log probability of the item in the mixture."""
        drawn = self.uniform.num_negatives
        popular = self.frequency.probability(item_idx)
        return log((num_targets * popular + drawn / len(self.uniform.corpus)) / (num_targets + drawn))
