"""Layouts of the tokens of several sequences in memory, and the operations that encoders need on them.

Encoders are written once, for tokens [..., D] and a layout. Training and evaluation use `Packed`, which has no padding,
and the exported tower uses `Padded`. A sequence is the start token followed by its events, oldest first.
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
        position: int64, one value a token: 0 for the start token, then 1, 2, ...
        from_end: int64, one value a token: 0 for the last token of a sequence, 1 for the one before it, ...
        time: int64, one value a token: seconds, where the start token has the time of the first event; None if the
            encoder reads no times.
    """

    position: Tensor
    from_end: Tensor
    time: Tensor | None

    def attend(self, heads: Tensor, dropout: float, *, window: int | None = None) -> Tensor:
        """Return the result of causal attention within each sequence, [..., H, E].

        Args:
            heads: queries, keys and values [..., 3, H, E].
            dropout: rate of dropout on the attention weights.
            window: number of tokens that each token sees, itself included; None for all tokens before it.
        """
        ...

    def pairs(self, num_heads: int) -> Sequence[Pairs]:
        """Return the pairs of tokens in each group of rows that `split` returns."""
        ...

    def split(self, heads: Tensor) -> Sequence[Tensor]:
        """Return queries, keys and values [..., 3, H, E] as groups of rows [3, H, B, L, E], for other attention."""
        ...

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return groups of rows [H, B, L, E] in the order of the tokens, [..., H, E]."""
        ...

    def cumulative_sum(self, x: Tensor) -> Tensor:
        """Return the sum over the sequence up to and including each token; [..., D]."""
        ...

    def total(self, x: Tensor) -> Tensor:
        """Return the sum over the whole sequence at each of its tokens; [..., D]. Not causal."""
        ...


class Packed:
    """Sequences one after another without padding, tokens [N, D].

    Only attention has some padding, because it lays sequences side by side in rows (see `recsys.models.attention`).

    Args:
        lengths: int64 [H] on the host, tokens of each sequence, at least 1 (the start token).
        device: device of the tokens.
        time: int64 [N], times of the tokens as in `Layout`.
    """

    def __init__(self, lengths: npt.NDArray[np.int64], device: torch.device, *, time: Tensor | None = None) -> None:
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

    def attend(self, heads: Tensor, dropout: float, *, window: int | None = None) -> Tensor:
        """See `Layout`."""
        num_heads = heads.shape[2]
        plan = self._plan(num_heads) if window is None else self._window_plan(num_heads, window)
        return plan.attend(heads, dropout)

    def _plan(self, num_heads: int) -> AttentionRows:
        if num_heads not in self._rows:
            self._rows[num_heads] = AttentionRows(self.lengths, num_heads, device=self._device)
        return self._rows[num_heads]

    def _window_plan(self, num_heads: int, window: int) -> AttentionRows | WindowPieces:
        key = num_heads, window
        if key not in self._windows:
            form = WindowPieces if int(self.lengths.max(initial=0)) > 2 * window else AttentionRows
            self._windows[key] = form(self.lengths, num_heads, device=self._device, window=window)
        return self._windows[key]

    def pairs(self, num_heads: int) -> Sequence[Pairs]:
        """See `Layout`."""
        return self._plan(num_heads).pairs(self.time)

    def split(self, heads: Tensor) -> Sequence[Tensor]:
        """See `Layout`."""
        return self._plan(heads.shape[2]).split(heads)

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """See `Layout`."""
        return self._plan(outputs[0].shape[0]).join(outputs)

    def cumulative_sum(self, x: Tensor) -> Tensor:
        """See `Layout`."""
        # In float64 the difference of two long running sums keeps float32's precision.
        running = x.double().cumsum(0)
        before = F.pad(running, (0, 0, 1, 0))[self._starts]
        return (running - before[self.sequence]).to(x.dtype)

    def total(self, x: Tensor) -> Tensor:
        """See `Layout`."""
        sums = x.new_zeros(len(self.lengths), x.shape[1])
        return F.embedding(self.sequence, sums.scatter_add(0, self.sequence.unsqueeze(1).expand_as(x), x))


class Padded:
    """Sequences in rows that are padded on the right, tokens [B, L, D].

    Args:
        tokens: tokens of the sequences.
        lengths: int64 [B], tokens of each sequence.
        time: int64 [B, L], times of the tokens as in `Layout`.
    """

    def __init__(self, tokens: Tensor, lengths: Tensor, *, time: Tensor | None = None) -> None:
        self.position = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        self._is_token = (self.position < lengths.unsqueeze(1)).unsqueeze(2)
        self.from_end = (lengths.unsqueeze(1) - 1 - self.position).clamp(min=0)
        self.time = time

    def attend(self, heads: Tensor, dropout: float, *, window: int | None = None) -> Tensor:
        """See `Layout`."""
        query, key, value = (x.transpose(1, 2) for x in heads.unbind(-3))
        visible = None if window is None else self._visible(window)
        attended = F.scaled_dot_product_attention(query, key, value, visible, dropout, is_causal=visible is None)
        return attended.transpose(1, 2)

    def _visible(self, window: int | None = None) -> Tensor:
        """Return a mask bool [1, L, L]. Padding comes after all tokens, so no token sees it."""
        before = self.position.unsqueeze(2) - self.position.unsqueeze(1)
        return before >= 0 if window is None else (before >= 0) & (before < window)

    def pairs(self, num_heads: int) -> Sequence[Pairs]:  # noqa: ARG002
        """See `Layout`."""
        return [Pairs.from_times(self._visible(), self.time)]

    def split(self, heads: Tensor) -> Sequence[Tensor]:
        """See `Layout`."""
        return [heads.permute(2, 3, 0, 1, 4)]

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """See `Layout`."""
        return outputs[0].permute(1, 2, 0, 3)

    def cumulative_sum(self, x: Tensor) -> Tensor:
        """See `Layout`."""
        return x.cumsum(1)

    def total(self, x: Tensor) -> Tensor:
        """See `Layout`."""
        return (x * self._is_token).sum(1, keepdim=True).expand_as(x)
