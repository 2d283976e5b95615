"""Networks over the embeddings of several features, which model interactions between features.

Each is built from the widths W_1, ..., W_F of F features and maps [..., W_1 + ... + W_F] to [..., out_dim].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
