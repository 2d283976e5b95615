"""History encoders, which turn the tokens of a sequence into the user's state after each token.

All of these are causal: the state at a position depends only on the tokens up to it, so one pass learns from every
position of a history. The modules `modern` and `hstu` hold further encoders.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.models.dropout import Dropout
from recsys.models.layout import Layout

Activation = Literal["gelu", "relu"]
NormPlace = Literal["before", "after"]


class HistoryEncoder(Protocol):
    """A module that maps tokens [..., D] in a layout to states [..., D].

    Attributes:
        is_causal: true if no state depends on a later token. An encoder that is not causal gets a sequence for each
            query (the history before it), and only the state of the last token is used.
        reads_time: true if the encoder reads `layout.time`.
    """

    is_causal: bool
    reads_time: bool

    def __call__(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Return states [..., D] of tokens [..., D]."""
        ...


class Tokens(nn.Module):
    """No encoding: states are the tokens, for interests that group the events themselves."""

    is_causal, reads_time = True, False

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:  # noqa: ARG002
        """Return the tokens."""
        return tokens


class MeanPooling(nn.Module):
    """Mean of the tokens so far (Covington et al. 2016, section 3.2, where averaging was best), then an MLP.

    Args:
        dim: width of the states, D.
        hidden: width of the MLP's hidden layer; 0 for no MLP.
        dropout: rate of dropout on the mean.
    """

    is_causal, reads_time = True, False

    def __init__(self, dim: int, hidden: int = 0, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)) if hidden else None

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Return states [..., D] of tokens [..., D]."""
        mean = self.dropout(layout.cumulative_sum(tokens) / (layout.position + 1).unsqueeze(-1))
        return mean if self.mlp is None else mean + self.mlp(mean)  # type: ignore[no-any-return]


class AttentionPooling(nn.Module):
    """Weighted mean of the tokens so far, with weights from a small network (Yang et al. 2016, section 2.2).

    The weight of a token is the same for all later positions, so the causal form is two running sums.

    Args:
        dim: width of the states, D.
        hidden: width of the scoring network.
        dropout: rate of dropout on the tokens.
    """

    is_causal, reads_time = True, False

    def __init__(self, dim: int, hidden: int = 64, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.score = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Return states [..., D] of tokens [..., D]."""
        # Scores are bounded to keep the exponential finite, because subtracting their maximum would not be causal.
        weight = torch.exp(8.0 * torch.tanh(self.score(self.dropout(tokens)) / 8.0))
        sums = layout.cumulative_sum(torch.cat([weight * tokens, weight], dim=-1))
        pooled = sums[..., :-1] / sums[..., -1:]
        return pooled + self.mlp(pooled)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Causal transformer with learned positions (SASRec, Kang and McAuley 2018), optionally with a running mean.

    With `running_mean` a block mixes self-attention with `low + g^2 (x - low)`, where `low` is the mean of the tokens
    so far and g is learned for each dimension. This is the causal form of BSARec's low-pass filter (Shin et al. 2024,
    arXiv 2312.10325), so one pass learns from every position of a history.

    Args:
        dim: width of the states, D.
        max_history: longest history. There is one more position, for the start token.
        num_blocks: number of blocks.
        num_heads: heads of each block.
        expansion: hidden width of the feed-forward part, in multiples of D.
        dropout: rate of dropout on tokens, attention weights and the outputs of all parts.
        activation: activation of the feed-forward part, `gelu` or the paper's `relu`, which is cheaper.
        norm: layer norm `before` each part, or `after` its residual connection. The latter is the form of BERT and
            BSARec, whose weights begin with a deviation of .02 and whose hidden layer has no dropout.
        running_mean: share of the running mean in a block; the rest is that of self-attention. 0 for none.
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
        activation: Activation = "gelu",
        norm: NormPlace = "before",
        running_mean: float = 0.0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads: found {num_heads}, expected a divisor of dim {dim}")
        if activation not in ("gelu", "relu"):
            raise ValueError(f"activation: found '{activation}', expected 'gelu' or 'relu'")
        if norm not in ("before", "after"):
            raise ValueError(f"norm: found '{norm}', expected 'before' or 'after'")
        if not 0.0 <= running_mean < 1.0:
            raise ValueError(f"running_mean: found {running_mean}, expected a share of at least 0 and below 1")
        self.position = nn.Embedding(max_history + 1, dim)
        nn.init.normal_(self.position.weight, std=0.02)
        self.dropout = Dropout(dropout)
        self.norm_first = norm == "before"
        self.blocks = nn.ModuleList(
            _Block(
                dim,
                num_heads,
                expansion=expansion,
                dropout=dropout,
                activation=activation,
                norm_first=self.norm_first,
                running_mean=running_mean,
            )
            for _ in range(num_blocks)
        )
        # Of the states if each part has its norm before it, else of the tokens.
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Return states [..., D] of tokens [..., D]."""
        x = tokens + self.position(layout.position)
        x = self.dropout(x if self.norm_first else self.norm(x))
        for block in self.blocks:
            x = block(x, layout)
        return self.norm(x) if self.norm_first else x  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        expansion: int,
        dropout: float,
        activation: Activation,
        norm_first: bool,
        running_mean: float,
    ) -> None:
        super().__init__()
        self.num_heads, self.attention_dropout = num_heads, dropout
        self.norm_first, self.running_mean = norm_first, running_mean
        self.activation = F.relu if activation == "relu" else F.gelu
        self.attention_norm, self.feed_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.expand, self.contract = nn.Linear(dim, expansion * dim), nn.Linear(expansion * dim, dim)
        self.dropout = Dropout(dropout)
        for layer in (self.projection, self.output, self.expand, self.contract):
            if norm_first:
                nn.init.xavier_normal_(layer.weight)
            else:
                nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.high_gain = nn.Parameter(torch.randn(dim)) if running_mean else None
        self.mean_norm = nn.LayerNorm(dim) if running_mean and not norm_first else None

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        share = self.running_mean
        if self.norm_first:
            y = self.attention_norm(x)
            branch = self._attend(y, layout)
            if share:
                branch = (1.0 - share) * branch + share * self._filter(y, layout)
            x = x + branch
            return x + self._feed(self.feed_norm(x))
        mixed = self.attention_norm(x + self._attend(x, layout))
        if self.mean_norm is not None:
            mixed = (1.0 - share) * mixed + share * self.mean_norm(x + self._filter(x, layout))
        return self.feed_norm(mixed + self._feed(mixed))  # type: ignore[no-any-return]

    def _attend(self, x: Tensor, layout: Layout) -> Tensor:
        heads = self.projection(x).unflatten(-1, (3, self.num_heads, -1))
        dropout = self.attention_dropout if self.training else 0.0
        return self.dropout(self.output(layout.attend(heads, dropout).flatten(-2)))  # type: ignore[no-any-return]

    def _filter(self, x: Tensor, layout: Layout) -> Tensor:
        assert self.high_gain is not None
        low = layout.cumulative_sum(x) / (layout.position + 1).unsqueeze(-1)
        return self.dropout(low + self.high_gain.square() * (x - low))  # type: ignore[no-any-return]

    def _feed(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.expand(x))
        # BERT and BSARec have no dropout on the hidden layer. It slows their form down by half.
        return self.dropout(self.contract(self.dropout(hidden) if self.norm_first else hidden))  # type: ignore[no-any-return]
