"""Logits in blocks that stay in cache and reuse their memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# A block of logits near the size of common last-level caches: smaller ones make the matrix products slower (by 15% at
# 4 MiB on 2 cores), larger ones gain nothing.
BLOCK_BYTES = 12 << 20


class Buffer:
    """Memory for one block of logits, kept from step to step: fresh pages cost more than the arithmetic on them."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def block(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """An uninitialised [rows, columns] tensor of the type and on the device of `like`."""
        memory = self._memory
        if (
            memory is None
            or memory.numel() < rows * columns
            or memory.device != like.device
            or memory.dtype != like.dtype
        ):
            memory = self._memory = torch.empty(rows * columns, dtype=like.dtype, device=like.device)
        return memory[: rows * columns].view(rows, columns)


def blocks(num_rows: int, num_columns: int, device: torch.device) -> Iterator[slice]:
    """Rows of one block of logits after another."""
    # On a GPU larger blocks are better, and still small beside the whole matrix.
    block_bytes = BLOCK_BYTES if device.type == "cpu" else 16 * BLOCK_BYTES
    height = max(16, min(num_rows, block_bytes // (4 * max(num_columns, 1))))
    # Blocks of one height: a low last one would be slow.
    height = max(-(-num_rows // -(-num_rows // height)), 1) if num_rows else height
    for begin in range(0, num_rows, height):
        yield slice(begin, min(begin + height, num_rows))


def lowest(like: Tensor) -> float:
    """A logit that counts for nothing, and stays finite when others are added."""
    return torch.finfo(like.dtype).min / 2
