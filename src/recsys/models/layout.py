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


class Layout(Protocol):
    """Sequences of tokens in memory."""

    position: Tensor
    """int64, shaped as the tokens: 0 for the start token, then 1, 2, ..."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Causal attention within each sequence; all [..., heads, D_head]."""
        ...

    def cumulative_sum(self, x: Tensor) -> Tensor:
        """Sum over the sequence up to and including each token; [..., D]."""
        ...


class Packed:
    """Sequences one after another, tokens [N, D].

    Attention runs over groups of sequences of similar length, each padded to its longest only; all else has no padding.

    Args:
        lengths: int64 [H] on the host, tokens of each sequence (at least 1: the start token).
    """

    def __init__(self, lengths: npt.NDArray[np.int64], device: torch.device) -> None:
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self.sequence = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(device)
        self.position = torch.from_numpy(ragged_positions(np.zeros_like(lengths), lengths)).to(device)
        self._starts = torch.from_numpy(starts).to(device)
        # Groups double in length: at most half of a padded group is waste, and there are few of them.
        size = np.maximum(2 ** np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64), 8)
        self._groups: list[Tensor] = []
        place = np.empty(int(lengths.sum()), np.int64)
        filled = 0
        for group in np.unique(size):
            members = np.flatnonzero(size == group)
            longest = int(lengths[members].max())
            step = np.arange(longest)
            # Padding repeats the last token; causal attention keeps it out of every real row.
            gather = starts[members][:, None] + np.minimum(step, lengths[members][:, None] - 1)
            self._groups.append(torch.from_numpy(gather).to(device))
            real = ragged_positions(starts[members], lengths[members])
            row = np.repeat(np.arange(len(members)), lengths[members])
            place[real] = filled + row * longest + ragged_positions(np.zeros_like(members), lengths[members])
            filled += gather.size
        self._place = torch.from_numpy(place).to(device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        outputs = []
        stacked = torch.cat([query, key, value], dim=1)
        heads = query.shape[1]
        for gather in self._groups:
            # [b, l, 3 * heads, d] -> 3 x [b, heads, l, d]
            grouped = F.embedding(gather, stacked.flatten(1)).unflatten(2, stacked.shape[1:]).transpose(1, 2)
            q, k, v = grouped.split(heads, dim=1)
            attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
            outputs.append(attended.transpose(1, 2).flatten(2).flatten(0, 1))
        return F.embedding(self._place, torch.cat(outputs)).unflatten(1, query.shape[1:])

    def cumulative_sum(self, x: Tensor) -> Tensor:
        # In float64 the difference of two long running sums keeps float32's precision.
        running = x.double().cumsum(0)
        before = F.pad(running, (0, 0, 1, 0))[self._starts]
        return (running - before[self.sequence]).to(x.dtype)


class Padded:
    """Sequences in rows, padded on the right: tokens [B, L, D]."""

    def __init__(self, tokens: Tensor) -> None:
        self.position = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return attended.transpose(1, 2)

    def cumulative_sum(self, x: Tensor) -> Tensor:
        return x.cumsum(1)
