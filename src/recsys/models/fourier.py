"""BSARec: self-attention combined with a low-pass filter over the whole sequence. Not causal."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.models.dropout import Dropout
from recsys.models.layout import Layout


class BSARec(nn.Module):
    """Self-attention combined with a filter that rescales high frequencies (Shin et al. 2024, arXiv 2312.10325).

    Frequencies are those of the longest history, and missing tokens count as zeros, so histories of all lengths are
    filtered alike. The filter reads all tokens of a sequence, so only the last state depends on no later token. The
    encoder therefore learns from a sequence for each query, and its cost grows with the square of the history's length.

    Args:
        dim: width of the states, D.
        max_history: longest history. There is one more position, for the start token.
        num_blocks: number of blocks.
        num_heads: heads of each block.
        num_frequencies: number of lowest frequencies that the filter keeps, with the constant one (the paper's c).
        alpha: share of the filter in the state; the rest is that of self-attention.
        dropout: rate of dropout on tokens, attention weights and the outputs of all parts.
    """

    is_causal, reads_time = False, False

    def __init__(
        self,
        dim: int,
        max_history: int,
        *,
        num_blocks: int = 2,
        num_heads: int = 1,
        num_frequencies: int = 3,
        alpha: float = 0.7,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads: found {num_heads}, expected a divisor of dim {dim}")
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha: found {alpha}, expected a share between 0 and 1")
        self.low_pass = LowPass(max_history + 1, num_frequencies)
        # Positions count from the end, as in the paper, whose sequences are padded on the left.
        self.position = nn.Embedding(max_history + 1, dim)
        self.norm, self.dropout = nn.LayerNorm(dim), Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(dim, num_heads, alpha=alpha, dropout=dropout) for _ in range(num_blocks))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Return states [..., D] of tokens [..., D]. The last state of a sequence is that of the user."""
        x = self.dropout(self.norm(tokens + self.position(layout.from_end)))
        for block in self.blocks:
            x = block(x, layout, self.low_pass)
        return x  # type: ignore[no-any-return]


class LowPass(nn.Module):
    """The lowest frequencies of each sequence, padded with zeros to `length` tokens.

    The result is that of a real Fourier transform and its inverse with all other frequencies set to zero. The place of
    the sequence among the zeros does not matter. A few frequencies are a product with a few waves, without padding.

    Args:
        length: length of the transform, N.
        num_frequencies: number of frequencies kept, 1..N // 2 + 1.
    """

    waves: Tensor

    def __init__(self, length: int, num_frequencies: int) -> None:
        super().__init__()
        if not 1 <= num_frequencies <= length // 2 + 1:
            raise ValueError(f"num_frequencies: found {num_frequencies}, expected 1 to {length // 2 + 1}")
        step = torch.arange(length, dtype=torch.float64)
        waves = []
        for frequency in range(num_frequencies):
            angle = 2 * math.pi * frequency / length * step
            # The constant has no sine wave, and neither has the highest frequency of an even length.
            is_single = frequency == 0 or 2 * frequency == length
            forms = (angle.cos(),) if is_single else (angle.cos(), angle.sin())
            waves += [math.sqrt((1 if is_single else 2) / length) * form for form in forms]
        self.register_buffer("waves", torch.stack(waves, dim=1).float(), persistent=False)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the filtered tokens [..., D]."""
        waves = self.waves[layout.position].unsqueeze(-1)
        amplitudes = layout.total((waves * x.unsqueeze(-2)).flatten(-2)).unflatten(-1, (waves.shape[-2], -1))
        low: Tensor = (waves * amplitudes).sum(-2)
        return low


class _Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, *, alpha: float, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.alpha, self.attention_dropout = num_heads, alpha, dropout
        self.high_gain = nn.Parameter(torch.randn(dim))
        self.projection, self.output = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.expand, self.contract = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.filter_norm, self.attention_norm, self.feed_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, layout: Layout, low_pass: LowPass) -> Tensor:
        low = low_pass(x, layout)
        filtered = self.filter_norm(x + self.dropout(low + self.high_gain.square() * (x - low)))
        heads = self.projection(x).unflatten(-1, (3, self.num_heads, -1))
        dropout = self.attention_dropout if self.training else 0.0
        attended = self.attention_norm(x + self.dropout(self.output(layout.attend(heads, dropout).flatten(-2))))
        mixed = self.alpha * filtered + (1.0 - self.alpha) * attended
        return self.feed_norm(mixed + self.dropout(self.contract(F.gelu(self.expand(mixed)))))  # type: ignore[no-any-return]
