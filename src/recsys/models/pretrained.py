"""Pretrained item embeddings as an input of the item tower.

Shapes: N items with training events, W width, R rows, D dim.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recsys.core.errors import UserError
from recsys.data.dataset import PreparedDataset
from recsys.models.dropout import Dropout


class EmbeddingSource(Protocol):
    """A function that returns embeddings for the items of a data set."""

    def __call__(self, dataset: PreparedDataset, width: int) -> npt.NDArray[np.floating]:
        """Return embeddings [N + 1, W], indexed by item_idx. Items without an embedding, and row 0, have zeros.

        Raises:
            UserError: If there are no embeddings for this data, or they have another width.
        """
        ...


class PretrainedBuilder(Protocol):
    """A function that builds the pretrained part of an item tower."""

    def __call__(self, *, dim: int, num_items: int, sparse: bool) -> nn.Module:
        """Return the module, such as a `PretrainedItems` of which all other arguments are set."""
        ...


class PretrainedItems(nn.Module):
    """A table of embeddings with dropout and a learned projection to the item tower's dimension.

    Item towers of Pinterest read pretrained id embeddings, frozen and with a dropout of 0.5, because they overfit
    if they are trained with the rest ("Advancements in Embedding-Based Retrieval", 2025).

    The table is part of checkpoints. `fill` reads the source once, when training begins.

    Args:
        source: source of the embeddings.
        dim: width of the item tower, D.
        num_items: number of trained items, N.
        width: width of the embeddings, W.
        frozen: do not train the table.
        dropout: rate of dropout on the embeddings.
        sparse: update a table that is not frozen by rows.
    """

    def __init__(
        self,
        source: EmbeddingSource,
        dim: int,
        *,
        num_items: int,
        width: int = 64,
        frozen: bool = True,
        dropout: float = 0.5,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"pretrained.width: found {width}, expected at least 1")
        self.source = source
        self.table = nn.Embedding(num_items + 1, width, sparse=sparse and not frozen)
        self.table.requires_grad_(not frozen)
        nn.init.zeros_(self.table.weight)
        self.dropout = Dropout(dropout)
        self.projection = nn.Linear(width, dim, bias=False)

    def fill(self, dataset: PreparedDataset) -> None:
        """Read the embeddings, scaled so that the initial projection gives values of an id embedding's size.

        Raises:
            UserError: If the source has no embeddings for this data.
        """
        width, dim = self.table.embedding_dim, self.projection.out_features
        found = torch.from_numpy(np.asarray(self.source(dataset, width), np.float32))
        if found.shape != self.table.weight.shape:
            raise UserError(
                f"item_tower.pretrained: found embeddings {list(found.shape)}, "
                f"expected {list(self.table.weight.shape)} (width={width})"
            )
        if not found.any():
            raise UserError("item_tower.pretrained: the source has no embedding for any item that is trained here")
        # The mean square of the embeddings becomes 3 / dim, and the initial projection leaves a third of it.
        scale = found[found.any(1)].square().mean().sqrt()
        with torch.no_grad():
            self.table.weight.copy_(found / scale * (3.0 / dim) ** 0.5)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the embeddings [R, D] of `rows` int64 [R], 0..N."""
        return self.projection(self.dropout(self.table(rows)))  # type: ignore[no-any-return]
