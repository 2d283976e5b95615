"""Targets of earlier steps with the embeddings that they had."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Bank(nn.Module):
    """The latest targets with the embeddings that they had, first in, first out.

    All processes write what all of them hold, in one order, so their banks are equal.

    Args:
        size: of the bank.
        dim: D.
        warmup_steps: embeddings of earlier steps are not read: in the beginning they change too fast.
    """

    item_idx: Tensor
    embeddings: Tensor

    def __init__(self, size: int, dim: int, warmup_steps: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"bank_size: found {size}, expected at least 1")
        self.size, self.warmup_steps = size, warmup_steps
        self.register_buffer("item_idx", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("embeddings", torch.zeros(size, dim))

    def read(self, step: int) -> tuple[Tensor, Tensor]:
        """Items int64 [R] and embeddings [R, D], latest first; none before the warm-up is over. Valid until `write`."""
        # Targets are items, and items are numbered from 1.
        num_filled = int(self.item_idx.count_nonzero()) if step >= self.warmup_steps else 0
        return self.item_idx[:num_filled], self.embeddings[:num_filled]

    def write(self, item_idx: Tensor, embeddings: Tensor) -> None:
        """Put in the targets of a step, int64 [P] and [P, D]; the oldest leave."""
        self.item_idx.copy_(torch.cat([item_idx, self.item_idx])[: self.size])
        self.embeddings.copy_(torch.cat([embeddings.detach(), self.embeddings])[: self.size])
