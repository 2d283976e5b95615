"""Item embeddings that were learned elsewhere, as an input of the item tower.

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
    """Where the embeddings come from."""

    def __call__(self, dataset: PreparedDataset, width: int) -> npt.NDArray[np.floating]:
        """[N + 1, W], indexed by item_idx; rows of zeros for items that it has none for, row 0 among them.

        Raises:
            UserError: it has no embeddings for this data, or of another width.
        """
        ...


class PretrainedBuilder(Protocol):
    """Builds the pretrained part of an item tower."""

    def __call__(self, *, dim: int, num_items: int, sparse: bool) -> nn.Module:
        """As `PretrainedItems`, whose other arguments it knows."""
        ...


class PretrainedItems(nn.Module):
    """A table of embeddings, dropout on what is read of it, and a learned projection to the item tower's dimension.

    Pinterest's item towers read id embeddings that were trained before, frozen and with a dropout of 0.5: tuned with
    the rest they overfit ("Advancements in Embedding-Based Retrieval", 2025).

    The table is part of checkpoints. It is filled when training begins, and only then is its source asked.

    Args:
        source: of the embeddings.
        dim: D.
        num_items: N.
        width: W.
        frozen: keep the table as it is.
        dropout: on the embeddings read.
        sparse: row-wise updates of a table that is not frozen.
    """

    def __init__(
        self,
        source: EmbeddingSource,
        dim: int,
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
        """Read the embeddings, scaled so that the projection begins with values of an id embedding's size.

        Raises:
            UserError: the source has none for this data.
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
        # The mean square of what is there becomes 3 / dim, of which the projection leaves a third.
        scale = found[found.any(1)].square().mean().sqrt()
        with torch.no_grad():
            self.table.weight.copy_(found / scale * (3.0 / dim) ** 0.5)

    def forward(self, rows: Tensor) -> Tensor:
        """Embeddings [R, D] of `rows` int64 [R], 0..N."""
        return self.projection(self.dropout(self.table(rows)))  # type: ignore[no-any-return]
