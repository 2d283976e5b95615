"""How the tokens of a batch of sequences lie in memory, and what encoders need to know of it.

Encoders are written once, for tokens [..., D] and a layout. Training and evaluation use `Packed` (no padding); the
exported tower uses `Padded`. A sequence is the start token followed by its events, oldest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.core.columns import ragged_positions
from recsys.models.attention import AttentionRows, Pairs, WindowPieces


class Layout(Protocol):
    """Sequences of tokens in memory.

    Attributes:
        position: int64, shaped as the tokens: 0 for the start token, then 1, 2, ...
        from_end: the same counted from the sequence's last token, which has 0.
        time: int64, shaped as the tokens: seconds, the start token's that of the first event; null where the encoder
            reads none.
    """

    position: Tensor
    from_end: Tensor
    time: Tensor | None

    def attend(self, heads: Tensor, dropout: float, window: int | None = None) -> Tensor:
        """Causal attention within each sequence: queries, keys and values [..., 3, H, E] -> [..., H, E].

        With a window, each token sees the last `window` tokens, itself included.
        """
        ...

    def pairs(self, num_heads: int) -> Sequence[Pairs]:
        """Which token sees which before it, for each group of rows that `split` gives."""
        ...

    def split(self, heads: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values [..., 3, H, E] in groups of rows [3, H, B, L, E], for other forms of attention."""
        ...

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """Groups of rows [H, B, L, E] as the tokens lie, [..., H, E]."""
        ...

    def cumulative_sum(self, x: Tensor) -> Tensor:
        """Sum over the sequence up to and including each token; [..., D]."""
        ...

    def total(self, x: Tensor) -> Tensor:
        """Sum over the whole sequence, at each of its tokens; [..., D]. Not causal."""
        ...


class Packed:
    """Sequences one after another, tokens [N, D].

    Attention lays whole sequences side by side in rows (see `recsys.models.attention`); all else has no padding.

    Args:
        lengths: int64 [H] on the host, tokens of each sequence (at least 1: the start token).
        time: int64 [N], as in `Layout`.
    """

    def __init__(self, lengths: npt.NDArray[np.int64], device: torch.device, time: Tensor | None = None) -> None:
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        position = ragged_positions(np.zeros_like(lengths), lengths)
        self.sequence = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(device)
        self.position = torch.from_numpy(position).to(device)
        self.from_end = torch.from_numpy(np.repeat(lengths - 1, lengths) - position).to(device)
        self.time = time
        self._starts = torch.from_numpy(starts).to(device)
        self.lengths, self._device = lengths, device
        self._rows: dict[int, AttentionRows] = {}
        self._windows: dict[tuple[int, int], AttentionRows | WindowPieces] = {}

    def attend(self, heads: Tensor, dropout: float, window: int | None = None) -> Tensor:
        """As in `Layout`."""
        num_heads = heads.shape[2]
        plan = self._plan(num_heads) if window is None else self._window_plan(num_heads, window)
        return plan.attend(heads, dropout)

    def _plan(self, num_heads: int) -> AttentionRows:
        if num_heads not in self._rows:
            self._rows[num_heads] = AttentionRows(self.lengths, num_heads, self._device)
        return self._rows[num_heads]

    def _window_plan(self, num_heads: int, window: int) -> AttentionRows | WindowPieces:
        key = num_heads, window
        if key not in self._windows:
            form = WindowPieces if int(self.lengths.max(initial=0)) > 2 * window else AttentionRows
            self._windows[key] = form(self.lengths, num_heads, self._device, window)
        return self._windows[key]

    def pairs(self, num_heads: int) -> Sequence[Pairs]:
        """As in `Layout`."""
        return self._plan(num_heads).pairs(self.time)

    def split(self, heads: Tensor) -> Sequence[Tensor]:
        """As in `Layout`."""
        return self._plan(heads.shape[2]).split(heads)

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """As in `Layout`."""
        return self._plan(outputs[0].shape[0]).join(outputs)

    def cumulative_sum(self, x: Tensor) -> Tensor:
        """As in `Layout`."""
        # In float64 the difference of two long running sums keeps float32's precision.
        running = x.double().cumsum(0)
        before = F.pad(running, (0, 0, 1, 0))[self._starts]
        return (running - before[self.sequence]).to(x.dtype)

    def total(self, x: Tensor) -> Tensor:
        """As in `Layout`."""
        sums = x.new_zeros(len(self.lengths), x.shape[1])
        return F.embedding(self.sequence, sums.scatter_add(0, self.sequence.unsqueeze(1).expand_as(x), x))


class Padded:
    """Sequences in rows, padded on the right: tokens [B, L, D].

    Args:
        lengths: int64 [B], tokens of each sequence.
        time: int64 [B, L], as in `Layout`.
    """

    def __init__(self, tokens: Tensor, lengths: Tensor, time: Tensor | None = None) -> None:
        self.position = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        self._is_token = (self.position < lengths.unsqueeze(1)).unsqueeze(2)
        self.from_end = (lengths.unsqueeze(1) - 1 - self.position).clamp(min=0)
        self.time = time

    def attend(self, heads: Tensor, dropout: float, window: int | None = None) -> Tensor:
        """As in `Layout`."""
        query, key, value = (x.transpose(1, 2) for x in heads.unbind(-3))
        visible = None if window is None else self._visible(window)
        attended = F.scaled_dot_product_attention(query, key, value, visible, dropout, is_causal=visible is None)
        return attended.transpose(1, 2)

    def _visible(self, window: int | None = None) -> Tensor:
        """Bool [1, L, L]. Padding comes after all tokens, so no token sees it."""
        before = self.position.unsqueeze(2) - self.position.unsqueeze(1)
        return before >= 0 if window is None else (before >= 0) & (before < window)

    def pairs(self, num_heads: int) -> Sequence[Pairs]:  # noqa: ARG002
        """As in `Layout`."""
        return [Pairs.from_times(self._visible(), self.time)]

    def split(self, heads: Tensor) -> Sequence[Tensor]:
        """As in `Layout`."""
        return [heads.permute(2, 3, 0, 1, 4)]

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """As in `Layout`."""
        return outputs[0].permute(1, 2, 0, 3)

    def cumulative_sum(self, x: Tensor) -> Tensor:
        """As in `Layout`."""
        return x.cumsum(1)

    def total(self, x: Tensor) -> Tensor:
        """As in `Layout`."""
        return (x * self._is_token).sum(1, keepdim=True).expand_as(x)
