"""Networks over the embeddings of several features, which model interactions between features.

Each is built from the widths W_1, ..., W_F of F features and maps [..., W_1 + ... + W_F] to [..., out_dim].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Crossing(Protocol):
    """A function that builds a network over features."""

    def __call__(self, widths: Sequence[int], out_dim: int) -> nn.Module:
        """Return the network.

        Args:
            widths: widths of the features, in their order.
            out_dim: width of the output.
        """
        ...


class MLP(nn.Sequential):
    """One hidden layer with GELU. It has no explicit products of features.

    Args:
        widths: widths of the features.
        out_dim: width of the output.
        hidden: width of the hidden layer.
        dropout: rate of dropout on the hidden layer; None for no dropout layer.
    """

    def __init__(self, widths: Sequence[int], out_dim: int, *, hidden: int = 128, dropout: float | None = None) -> None:
        layers: list[nn.Module] = [nn.Linear(sum(widths), hidden), nn.GELU()]
        if dropout is not None:
            layers.append(nn.Dropout(dropout))
        super().__init__(*layers, nn.Linear(hidden, out_dim))


class CrossNetwork(nn.Module):
    """Explicit products of features: `x_(l+1) = x_0 * (W x_l + b) + x_l`, then an MLP.

    DCN-v2 (Wang et al. 2021, arXiv 2008.13535), section 3.2, stacked as in section 3.4. L layers contain all products
    of up to L + 1 values of the input.

    Args:
        widths: widths of the features.
        out_dim: width of the output.
        num_layers: number of cross layers, L.
        rank: rank of `W = U V` (section 3.5); None for a full matrix.
        hidden: width of the MLP's hidden layer.
        dropout: rate of dropout on the hidden layer; None for no dropout layer.
    """

    def __init__(
        self,
        widths: Sequence[int],
        out_dim: int,
        *,
        num_layers: int = 2,
        rank: int | None = None,
        hidden: int = 128,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("num_layers", num_layers), ("rank", rank)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: found {value}, expected at least 1")
        width = sum(widths)
        self.layers = nn.ModuleList(
            nn.Linear(width, width)
            if rank is None
            else nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            for _ in range(num_layers)
        )
        self.mlp = MLP(widths, out_dim, hidden=hidden, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out_dim] for features [..., sum of widths]."""
        crossed = x
        for layer in self.layers:
            crossed = x * layer(crossed) + crossed
        return self.mlp(crossed)  # type: ignore[no-any-return]


class MaskNet(nn.Module):
    """Features weighted by masks that are computed from all features, in parallel blocks, then an MLP.

    MaskNet (Wang et al. 2021, arXiv 2102.07619), the parallel form of section 3.4. A block is
    `ReLU(LayerNorm(W (mask * normalised features)))`, with `mask = W_2 ReLU(W_1 features)`.

    Args:
        widths: widths of the features, each of which is normalised by itself.
        out_dim: width of the output.
        num_blocks: number of parallel blocks.
        reduction: width of a mask's hidden layer in multiples of the features' width (section 3.2).
        hidden: width of a block's output, and of the MLP's hidden layer.
        dropout: rate of dropout on the MLP's hidden layer; None for no dropout layer.
    """

    def __init__(
        self,
        widths: Sequence[int],
        out_dim: int,
        *,
        num_blocks: int = 2,
        reduction: float = 1.0,
        hidden: int = 128,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        if num_blocks < 1:
            raise ValueError(f"num_blocks: found {num_blocks}, expected at least 1")
        if reduction <= 0:
            raise ValueError(f"reduction: found {reduction}, expected a positive number")
        self.widths = list(widths)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        inner = max(1, round(reduction * sum(widths)))
        self.blocks = nn.ModuleList(_MaskBlock(sum(widths), inner, hidden) for _ in range(num_blocks))
        self.mlp = MLP([hidden] * num_blocks, out_dim, hidden=hidden, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out_dim] for features [..., sum of widths]."""
        parts = x.split(self.widths, dim=-1)
        normalised = torch.cat([norm(part) for norm, part in zip(self.norms, parts, strict=True)], dim=-1)
        return self.mlp(torch.cat([block(x, normalised) for block in self.blocks], dim=-1))  # type: ignore[no-any-return]


class _MaskBlock(nn.Module):
    def __init__(self, width: int, inner: int, hidden: int) -> None:
        super().__init__()
        self.mask = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))
        self.projection = nn.Linear(width, hidden, bias=False)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor, normalised: Tensor) -> Tensor:
        return F.relu(self.norm(self.projection(self.mask(x) * normalised)))
