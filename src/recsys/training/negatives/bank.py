"""Targets of earlier steps, with the embeddings that they had then."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Bank(nn.Module):
    """A queue of the latest targets with the embeddings that they had.

    All processes write the targets of all processes in the same order, so their banks are equal.

    Args:
        size: number of targets kept.
        dim: width of the embeddings, D.
        warmup_steps: steps before the bank is read, because embeddings change too fast at first.
    """

    item_idx: Tensor
    embeddings: Tensor

    def __init__(self, size: int, dim: int, *, warmup_steps: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"bank_size: found {size}, expected at least 1")
        self.size, self.warmup_steps = size, warmup_steps
        self.register_buffer("item_idx", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("embeddings", torch.zeros(size, dim))

    def read(self, step: int) -> tuple[Tensor, Tensor]:
        """Return items int64 [R] and embeddings [R, D], latest first; none during the warm-up. Valid until `write`."""
        # Items are numbered from 1, so 0 marks an empty place.
        num_filled = int(self.item_idx.count_nonzero()) if step >= self.warmup_steps else 0
        return self.item_idx[:num_filled], self.embeddings[:num_filled]

    def write(self, item_idx: Tensor, embeddings: Tensor) -> None:
        """Add the targets of a step, int64 [P] and [P, D], and drop the oldest ones."""
        self.item_idx.copy_(torch.cat([item_idx, self.item_idx])[: self.size])
        self.embeddings.copy_(torch.cat([embeddings.detach(), self.embeddings])[: self.size])
