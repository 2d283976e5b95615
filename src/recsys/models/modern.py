"""A causal transformer with rotary positions, RMS norm, gated feed-forward layers and gated residuals."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.models.dropout import Dropout
from recsys.models.layout import Layout


class ModernTransformer(nn.Module):
    """Causal transformer with rotary positions, RMS norm before each part, SwiGLU and gated residuals.

    Rotary positions: Su et al. 2021 (arXiv 2104.09864, section 3.2.2); SwiGLU: Shazeer 2020 (arXiv 2002.05202); RMS
    norm: Zhang and Sennrich 2019 (arXiv 1910.07467). With gated residuals a part adds `sigmoid(W x)` times its output,
    as in LiGR (Borisyuk et al. 2025, arXiv 2502.03417), the blocks of eSASRec (arXiv 2508.06450).

    Args:
        dim: width of the states, D.
        max_history: longest history. There is one more position, for the start token.
        num_blocks: number of blocks.
        num_heads: heads of each block; their width D / num_heads must be even.
        expansion: hidden width of the feed-forward part, in multiples of D.
        dropout: rate of dropout on tokens, attention weights, the hidden layer and the outputs of both parts.
        gated: gate the residuals.
        window: number of tokens that each token sees in a block, itself included; None for all tokens before it.
    """

    is_causal, reads_time = True, False

    def __init__(
        self,
        dim: int,
        max_history: int,
        *,
        num_blocks: int = 2,
        num_heads: int = 2,
        expansion: int = 4,
        dropout: float = 0.2,
        gated: bool = True,
        window: int | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % (2 * num_heads):
            raise ValueError(f"num_heads: found {num_heads}, expected a divisor of half of dim {dim}")
        if window is not None and window < 1:
            raise ValueError(f"window: found {window}, expected at least 1, or null")
        self.rotation = _Rotation(dim // num_heads, max_history + 1)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            _Block(dim, num_heads, expansion=expansion, dropout=dropout, gated=gated, window=window)
            for _ in range(num_blocks)
        )
        self.norm = nn.RMSNorm(dim)

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Return states [..., D] of tokens [..., D]."""
        x = self.dropout(tokens)
        for block in self.blocks:
            x = block(x, layout, self.rotation)
        return self.norm(x)  # type: ignore[no-any-return]


class _Rotation(nn.Module):
    """Rotates pairs of values by angles that grow with the position, so that products depend only on distances."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, width: int, num_positions: int) -> None:
        super().__init__()
        frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angle = torch.arange(num_positions, dtype=torch.float64).unsqueeze(1) * frequency
        self.register_buffer("cosine", angle.cos().float(), persistent=False)
        self.register_buffer("sine", angle.sin().float(), persistent=False)

    def forward(self, heads: Tensor, position: Tensor) -> Tensor:
        """Return queries, keys and values [..., 3, H, E] at `position` [...], with queries and keys rotated."""
        cosine, sine = (table[position].unsqueeze(-2).unsqueeze(-2) for table in (self.cosine, self.sine))
        first, second = heads[..., :2, :, :].chunk(2, dim=-1)
        turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
        return torch.cat([turned, heads[..., 2:, :, :]], dim=-3)


class _Block(nn.Module):
    def __init__(
        self, dim: int, num_heads: int, *, expansion: int, dropout: float, gated: bool, window: int | None
    ) -> None:
        super().__init__()
        self.num_heads, self.attention_dropout, self.window = num_heads, dropout, window
        self.attention_norm, self.feed_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.projection = nn.Linear(dim, 3 * dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.expand = nn.Linear(dim, 2 * expansion * dim, bias=False)
        self.contract = nn.Linear(expansion * dim, dim, bias=False)
        self.attention_gate = nn.Linear(dim, dim) if gated else None
        self.feed_gate = nn.Linear(dim, dim) if gated else None
        self.dropout = Dropout(dropout)
        for layer in (self.projection, self.output, self.expand, self.contract):
            nn.init.xavier_normal_(layer.weight)

    def forward(self, x: Tensor, layout: Layout, rotation: _Rotation) -> Tensor:
        heads = self.projection(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        dropout = self.attention_dropout if self.training else 0.0
        attended = layout.attend(rotation(heads, layout.position), dropout, window=self.window)
        x = x + _gate(self.attention_gate, x, self.dropout(self.output(attended.flatten(-2))))
        gate, hidden = self.expand(self.feed_norm(x)).chunk(2, dim=-1)
        return x + _gate(self.feed_gate, x, self.dropout(self.contract(self.dropout(F.silu(gate) * hidden))))


def _gate(layer: nn.Module | None, x: Tensor, branch: Tensor) -> Tensor:
    return branch if layer is None else torch.sigmoid(layer(x)) * branch
