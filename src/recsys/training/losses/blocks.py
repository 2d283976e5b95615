"""Blocks of logits that fit into the cache and reuse one buffer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Bytes of a block, near the size of common last-level caches. Smaller blocks make the matrix products slower (by 15% at
# 4 MiB on 2 cores), and larger ones are no faster.
BLOCK_BYTES = 12 << 20


class Buffer:
    """Memory for one block of logits, kept from step to step because fresh pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def block(self, rows: int, columns: int, *, like: Tensor) -> Tensor:
        """Return an uninitialised [rows, columns] tensor of the type and on the device of `like`."""
        memory = self._memory
        if (
            memory is None
            or memory.numel() < rows * columns
            or memory.device != like.device
            or memory.dtype != like.dtype
        ):
            memory = self._memory = torch.empty(rows * columns, dtype=like.dtype, device=like.device)
        return memory[: rows * columns].view(rows, columns)


def blocks(num_rows: int, num_columns: int, *, device: torch.device) -> Iterator[slice]:
    """Yield the rows of each block of a matrix of logits."""
    # A GPU needs larger blocks, which are still small beside the whole matrix.
    block_bytes = BLOCK_BYTES if device.type == "cpu" else 16 * BLOCK_BYTES
    height = max(16, min(num_rows, block_bytes // (4 * max(num_columns, 1))))
    # All blocks get about the same height, because a low last block would be slow.
    height = max(-(-num_rows // -(-num_rows // height)), 1) if num_rows else height
    for begin in range(0, num_rows, height):
        yield slice(begin, min(begin + height, num_rows))


def lowest(like: Tensor) -> float:
    """Return a logit that adds nothing to a softmax and stays finite if others are added to it."""
    return torch.finfo(like.dtype).min / 2
