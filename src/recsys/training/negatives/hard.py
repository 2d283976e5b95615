"""Hard negatives: neighbours of the targets in the item space of an earlier run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.training.negatives.samplers import UniformNegatives
from recsys.training.negatives.sampling import SamplerInputs, at_least, log


class MinedNegatives(nn.Module):
    """Targets, uniform draws as in `MixedNegatives`, and neighbours of the targets in an earlier run's item space.

    A mined item is one of the `num_neighbors` nearest items (by cosine, itself left out) of a random target of the
    batch: an item that the earlier model confuses with a target. Mining from the index of an earlier checkpoint comes
    from ANCE (Xiong et al. 2021, section 3). ANCE searches with the query; this sampler searches with the positive, so
    that the neighbours are one table.

    The probability of a mined item is known: `Q_mined(i) = sum_t Q_target(t) [i is a neighbour of t] / num_neighbors`.
    With B targets, B' uniform and B'' mined draws, `Q = (B Q_target + B' / N + B'' Q_mined) / (B + B' + B'')`. Under
    logQ correction mined items are drawn more often but do not count more; with `logq=off` they count in full.

    Args:
        inputs: data and model that candidates are drawn for.
        run: folder of the earlier run.
        num_neighbors: neighbours of each item.
        num_mined: B'', mined items a step.
        num_negatives: B', uniform draws a step.
        max_targets: most targets that become candidates, as in `InBatchNegatives`.
    """

    is_uniform = False
    neighbors: Tensor
    probabilities: Tensor

    def __init__(
        self,
        inputs: SamplerInputs,
        run: str,
        *,
        num_neighbors: int = 50,
        num_mined: int = 256,
        num_negatives: int = 256,
        max_targets: int | None = 1024,
    ) -> None:
        super().__init__()
        at_least(1, num_neighbors=num_neighbors, num_mined=num_mined, max_targets=max_targets)
        self.max_targets, self.frequency, self.num_mined = max_targets, inputs.frequency, num_mined
        self.uniform = UniformNegatives(inputs, num_negatives)
        self.instead = UniformNegatives(inputs, num_mined)
        neighbors = inputs.nearest_items(run, num_neighbors)
        share = inputs.probabilities.unsqueeze(1).expand(neighbors.shape) / neighbors.shape[1]
        probabilities = torch.zeros_like(inputs.probabilities)
        probabilities.index_add_(0, neighbors.flatten(), share.flatten())
        # If a neighbour is missing (item 0), any item of the corpus is drawn instead.
        anything, probabilities[0] = probabilities[0].clone(), 0.0
        probabilities[inputs.corpus] += anything / len(inputs.corpus)
        self.register_buffer("neighbors", neighbors, persistent=False)
        self.register_buffer("probabilities", probabilities, persistent=False)

    def draw(self, generator: torch.Generator, target_idx: Tensor) -> Tensor:
        """Return B' items of the corpus, then B'' mined ones, with replacement."""
        uniform = self.uniform.draw(generator, target_idx)
        if not len(target_idx):
            return torch.cat([uniform, self.instead.draw(generator, target_idx)])
        # The order must not depend on the distribution of targets over processes.
        ordered, shape, device = target_idx.sort().values, (self.num_mined,), generator.device
        targets = ordered[torch.randint(len(ordered), shape, generator=generator, device=device)]
        columns = torch.randint(self.neighbors.shape[1], shape, generator=generator, device=device)
        mined = self.neighbors[targets, columns]
        return torch.cat([uniform, torch.where(mined == 0, self.instead.draw(generator, target_idx), mined)])

    def log_q(self, item_idx: Tensor, num_targets: int) -> Tensor:
        """Return the log probability of the item in the mixture."""
        popular = num_targets * self.frequency.probability(item_idx)
        uniform = self.uniform.num_negatives / len(self.uniform.corpus)
        mined = self.num_mined * self.probabilities[item_idx]
        return log((popular + uniform + mined) / (num_targets + self.uniform.num_negatives + self.num_mined))
