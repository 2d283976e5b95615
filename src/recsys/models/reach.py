"""An encoder of the whole history and an encoder of the latest events in one user tower."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.models.encoders import HistoryEncoder
from recsys.models.layout import Layout


class LongAndRecent(nn.Module):
    """A cheap encoder of the whole history and an encoder of the latest events, mixed by a gate.

    The state is `g * recent + (1 - g) * long` with `g = sigmoid(W [long, recent] + b)`, the gated fusion of SDM (Lv et
    al. 2019, arXiv 1909.00385). SDM's gate reads the profile too; here the user tower adds the profile afterwards.

    Args:
        dim: width of the states, D.
        long: encoder of the whole history.
        recent: encoder of the latest events, such as a transformer with a `window`.
    """

    def __init__(self, dim: int, *, long: HistoryEncoder, recent: HistoryEncoder) -> None:
        super().__init__()
        self.long, self.recent = long, recent
        self.gate = nn.Linear(2 * dim, dim)
        self.is_causal = long.is_causal and recent.is_causal
        self.reads_time = long.reads_time or recent.reads_time

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Return states [..., D] of tokens [..., D]."""
        long, recent = self.long(tokens, layout), self.recent(tokens, layout)
        gate = torch.sigmoid(self.gate(torch.cat([long, recent], dim=-1)))
        return long + gate * (recent - long)
