"""HSTU: attention without softmax, biased by distance and by elapsed time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.models.dropout import Dropout
from recsys.models.layout import Layout

# Buckets of elapsed time grow by e^0.301 = 1.35, as in the authors' code: the last begins after 60 years.
BUCKET_STEP, NUM_BUCKETS = 0.301, 72


class HSTU(nn.Module):
    """Hierarchical sequential transduction units (Zhai et al. 2024, arXiv 2402.17152, section 3).

    A unit's attention weights are `silu(q . k + bias)`, which no softmax makes add up to one; what they gather is
    normalised and gated, value by value, and there is no feed-forward part. The bias is that of the distance and that
    of the elapsed time, in buckets of its logarithm. Time is counted between the events themselves (the authors' code
    counts it from the next event, which has not happened when a request comes).

    Where the authors divide weights by the longest length, this divides by the number of tokens seen: the norm that
    follows makes both the same, up to its epsilon.

    Args:
        dim: D.
        max_history: longest history; one more position is kept for the start token.
        num_blocks, num_heads: of the units.
        dropout: on tokens and the outputs of units.
        use_time: read the times of events; needs data whose time is in seconds or days.
    """

    is_causal = True

    def __init__(
        self,
        dim: int,
        max_history: int,
        num_blocks: int = 2,
        num_heads: int = 2,
        dropout: float = 0.2,
        use_time: bool = True,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_heads, self.reads_time = num_heads, use_time
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(_Unit(dim, max_history, num_heads, dropout, use_time) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """States [..., D] of tokens [..., D]."""
        seen = [_Seen.of(*pairs) for pairs in layout.pairs(self.num_heads)]
        x = self.dropout(tokens)
        for block in self.blocks:
            x = block(x, layout, seen)
        return self.norm(x)  # type: ignore[no-any-return]


class _Seen(NamedTuple):
    """What all units need to know of pairs of tokens in B rows.

    Attributes:
        share: float32 [B, L, L], one over the number of tokens that the query sees, 0 for those that it does not.
        distance: int64 [L, L].
        bucket: int64 [B, L, L] of the elapsed time, if any.
    """

    share: Tensor
    distance: Tensor
    bucket: Tensor | None

    @classmethod
    def of(cls, visible: Tensor, elapsed: Tensor | None) -> _Seen:
        step = torch.arange(visible.shape[-1], device=visible.device)
        share = visible / visible.sum(-1, keepdim=True)
        distance = (step.unsqueeze(1) - step).clamp(min=0)
        return cls(share, distance, None if elapsed is None else time_bucket(elapsed))


def time_bucket(elapsed: Tensor) -> Tensor:
    """Bucket 0..NUM_BUCKETS-1 of `elapsed` seconds, int64: `floor(ln(elapsed) / 0.301)`, 0 below a second."""
    # In float64 no whole number of seconds is near a border, so that training and serving agree on all of them.
    logarithm = torch.log(elapsed.clamp(min=1).double())
    return (logarithm / BUCKET_STEP).long().clamp(max=NUM_BUCKETS - 1)


class _Unit(nn.Module):
    def __init__(self, dim: int, max_history: int, num_heads: int, dropout: float, use_time: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.input_norm, self.attended_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, 4 * dim, bias=False)
        self.output = nn.Linear(dim, dim)
        self.distance_bias = nn.Parameter(0.02 * torch.randn(max_history + 1))
        self.time_bias = nn.Parameter(0.02 * torch.randn(NUM_BUCKETS)) if use_time else None
        self.dropout = Dropout(dropout)
        for layer in (self.projection, self.output):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, layout: Layout, seen: Sequence[_Seen]) -> Tensor:
        projected = F.silu(self.projection(self.input_norm(x)))
        gate, heads = projected.split([x.shape[-1], 3 * x.shape[-1]], dim=-1)
        rows = layout.split(heads.unflatten(-1, (3, self.num_heads, -1)))
        attended = layout.join([self._attend(row, see) for row, see in zip(rows, seen, strict=True)])
        return x + self.output(self.dropout(gate * self.attended_norm(attended.flatten(-2))))  # type: ignore[no-any-return]

    def _attend(self, rows: Tensor, seen: _Seen) -> Tensor:
        """Gathered values [H, B, L, E] of queries, keys and values [3, H, B, L, E]."""
        query, key, value = rows.unbind(0)
        # Rows that several sequences share may be longer than any sequence.
        bias = _look_up(self.distance_bias, seen.distance.clamp(max=len(self.distance_bias) - 1))
        if self.time_bias is not None:
            assert seen.bucket is not None, "a layout without times"
            bias = bias + _look_up(self.time_bias, seen.bucket)
        weight: Tensor = F.silu(query @ key.transpose(-1, -2) + bias) * seen.share
        return weight @ value


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    # Of all ways to index, this one has a gradient that is fast on a CPU.
    return table.index_select(0, index.flatten()).view(index.shape)
