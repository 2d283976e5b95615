"""How the tokens of a batch of sequences lie in memory, and what encoders need to know of it.

Encoders are written once, for tokens [..., D] and a layout. Training and evaluation use `Packed` (no padding); the
exported tower uses `Padded`. A sequence is the start token followed by its events, oldest first.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.data.columns import ragged_positions
from recsys.models.attention import Rows


class Layout(Protocol):
    """Sequences of tokens in memory."""

    position: Tensor
    """int64, shaped as the tokens: 0 for the start token, then 1, 2, ..."""

    def attend(self, heads: Tensor, dropout: float) -> Tensor:
        """Causal attention within each sequence: queries, keys and values [..., 3, H, E] -> [..., H, E]."""
        ...

    def cumulative_sum(self, x: Tensor) -> Tensor:
        """Sum over the sequence up to and including each token; [..., D]."""
        ...


class Packed:
    """Sequences one after another, tokens [N, D].

    Attention lays whole sequences side by side in rows (see `recsys.models.attention`); all else has no padding.

    Args:
        lengths: int64 [H] on the host, tokens of each sequence (at least 1: the start token).
    """

    def __init__(self, lengths: npt.NDArray[np.int64], device: torch.device) -> None:
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self.sequence = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(device)
        self.position = torch.from_numpy(ragged_positions(np.zeros_like(lengths), lengths)).to(device)
        self._starts = torch.from_numpy(starts).to(device)
        self._lengths = lengths
        self._rows: Rows | None = None

    def attend(self, heads: Tensor, dropout: float) -> Tensor:
        """As in `Layout`."""
        if self._rows is None or self._rows.num_heads != heads.shape[2]:
            self._rows = Rows(self._lengths, heads.shape[2], heads.device)
        return self._rows.attend(heads, dropout)

    def cumulative_sum(self, x: Tensor) -> Tensor:
        """As in `Layout`."""
        # In float64 the difference of two long running sums keeps float32's precision.
        running = x.double().cumsum(0)
        before = F.pad(running, (0, 0, 1, 0))[self._starts]
        return (running - before[self.sequence]).to(x.dtype)


class Padded:
    """Sequences in rows, padded on the right: tokens [B, L, D]."""

    def __init__(self, tokens: Tensor) -> None:
        self.position = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)

    def attend(self, heads: Tensor, dropout: float) -> Tensor:
        """As in `Layout`."""
        query, key, value = (x.transpose(1, 2) for x in heads.unbind(-3))
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return attended.transpose(1, 2)

    def cumulative_sum(self, x: Tensor) -> Tensor:
        """As in `Layout`."""
        return x.cumsum(1)
