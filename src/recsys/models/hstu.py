"""HSTU: attention without softmax, with biases for the distance and the elapsed time between events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.models.attention import Pairs
from recsys.models.dropout import Dropout
from recsys.models.layout import Layout

# Buckets of elapsed time grow by a factor of e^0.301 = 1.35, as in the authors' code. The last begins after 60 years.
BUCKET_STEP, NUM_BUCKETS = 0.301, 72


class HSTU(nn.Module):
    """Hierarchical sequential transduction units (Zhai et al. 2024, arXiv 2402.17152, section 3).

    The attention weights of a unit are `silu(q . k + bias)`, without a softmax. The gathered values are normalised and
    gated elementwise, and there is no feed-forward part. The bias is the sum of a bias for the distance and one for the
    elapsed time, in buckets of its logarithm. Time is measured between the two events. The authors' code measures it
    from the next event, which has not happened yet at the time of a request.

    The authors divide weights by the longest length. This code divides by the number of tokens seen, which the norm
    that follows makes equal, up to its epsilon.

    Args:
        dim: width of the states, D.
        max_history: longest history. There is one more position, for the start token.
        num_blocks: number of units.
        num_heads: heads of each unit.
        dropout: rate of dropout on tokens and the outputs of units.
        use_time: read the times of events; needs timestamps in seconds or days.
    """

    is_causal = True

    def __init__(
        self,
        dim: int,
        max_history: int,
        *,
        num_blocks: int = 2,
        num_heads: int = 2,
        dropout: float = 0.2,
        use_time: bool = True,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads: found {num_heads}, expected a divisor of dim {dim}")
        self.num_heads, self.reads_time = num_heads, use_time
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            _Unit(dim, max_history, num_heads=num_heads, dropout=dropout, use_time=use_time) for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Return states [..., D] of tokens [..., D]."""
        pairs = [_UnitPairs.from_pairs(each) for each in layout.pairs(self.num_heads)]
        x = self.dropout(tokens)
        for block in self.blocks:
            x = block(x, layout, pairs)
        return self.norm(x)  # type: ignore[no-any-return]


class _UnitPairs(NamedTuple):
    """Values of pairs of tokens in B rows that all units share.

    Attributes:
        share: float32 [B, L, L], one over the number of tokens that the query sees; 0 for those that it does not see.
        distance: int64 [L, L].
        bucket: int64 [B, L, L], bucket of the elapsed time; None without times.
    """

    share: Tensor
    distance: Tensor
    bucket: Tensor | None

    @classmethod
    def from_pairs(cls, pairs: Pairs) -> _UnitPairs:
        visible, elapsed = pairs
        step = torch.arange(visible.shape[-1], device=visible.device)
        share = visible / visible.sum(-1, keepdim=True)
        distance = (step.unsqueeze(1) - step).clamp(min=0)
        return cls(share, distance, None if elapsed is None else time_bucket(elapsed))


def time_bucket(elapsed: Tensor) -> Tensor:
    """Return the bucket `floor(ln(elapsed) / 0.301)` of elapsed seconds, int64 0..NUM_BUCKETS-1; 0 below a second."""
    # In float64 no whole number of seconds is near a border, so training and serving choose the same bucket.
    logarithm = torch.log(elapsed.clamp(min=1).double())
    return (logarithm / BUCKET_STEP).long().clamp(max=NUM_BUCKETS - 1)


class _Unit(nn.Module):
    def __init__(self, dim: int, max_history: int, *, num_heads: int, dropout: float, use_time: bool) -> None:
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

    def forward(self, x: Tensor, layout: Layout, pairs: Sequence[_UnitPairs]) -> Tensor:
        projected = F.silu(self.projection(self.input_norm(x)))
        gate, heads = projected.split([x.shape[-1], 3 * x.shape[-1]], dim=-1)
        rows = layout.split(heads.unflatten(-1, (3, self.num_heads, -1)))
        attended = layout.join([self._attend(*group) for group in zip(rows, pairs, strict=True)])
        return x + self.output(self.dropout(gate * self.attended_norm(attended.flatten(-2))))  # type: ignore[no-any-return]

    def _attend(self, rows: Tensor, pairs: _UnitPairs) -> Tensor:
        query, key, value = rows.unbind(0)
        # Rows that several sequences share may be longer than any sequence.
        bias = _look_up(self.distance_bias, pairs.distance.clamp(max=len(self.distance_bias) - 1))
        if self.time_bias is not None:
            assert pairs.bucket is not None, "a layout without times"
            bias = bias + _look_up(self.time_bias, pairs.bucket)
        weight: Tensor = F.silu(query @ key.transpose(-1, -2) + bias) * pairs.share
        return weight @ value


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    # The gradient of `index_select` is faster on a CPU than that of other ways to index.
    return table.index_select(0, index.flatten()).view(index.shape)
