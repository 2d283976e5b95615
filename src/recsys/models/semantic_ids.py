"""Semantic ids: codes of the items' content, which similar items share. Shapes: R items, L levels, K codes, D dim."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import faiss
import numpy as np
import torch
from torch import Tensor, nn

from recsys.core.schema import Feature
from recsys.data.batches.batch import FeatureTensors
from recsys.models.content import ContentVectors

# Items that are compared with all centroids at a time.
_BLOCK = 1 << 18


class SemanticIdsBuilder(Protocol):
    """A function that builds the semantic ids of an item tower."""

    def __call__(self, features: Sequence[Feature], dim: int) -> SemanticIds:
        """Return the module, of which all other arguments are set. `features` are those of items."""
        ...


class SemanticIds(nn.Module):
    """Sum of the learned embeddings of the codes of an item.

    The codes are those of a residual quantiser of content vectors: the first is the nearest of K centroids, the next
    the nearest centroid of what is left (Rajput et al. 2023, section 3.1). Items with much the same content share
    embeddings that learn from the events of all of them, so a new item begins where they are (Singh et al. 2024).

    Centroids are not learned from events. They are part of checkpoints and releases, so later items get codes of the
    same meaning.

    Args:
        features: features of items, in the order of the schema.
        dim: width of the embeddings, D.
        num_bits: K is two to the power of it.
        num_levels: number of codes of an item, L.
        width: width of the content vectors that are quantised.
    """

    codebooks: Tensor

    def __init__(
        self, features: Sequence[Feature], dim: int, *, num_bits: int = 7, num_levels: int = 2, width: int = 64
    ) -> None:
        super().__init__()
        for name, value in (("num_bits", num_bits), ("num_levels", num_levels)):
            if value < 1:
                raise ValueError(f"{name}: found {value}, expected at least 1")
        self.content = ContentVectors(features, width)
        self.register_buffer("codebooks", torch.zeros(num_levels, 2**num_bits, width))
        self.table = nn.Embedding(num_levels * 2**num_bits, dim)
        nn.init.normal_(self.table.weight, std=0.02)
        self._codes, self._state = torch.zeros(0), ""

    def fit(self, values: FeatureTensors, cache: Path | None = None) -> None:
        """Compute the centroids from all items, whether or not they have events; see `ContentVectors.fit`."""
        self.content.fit(values, cache)
        vectors = self.content(values).numpy()
        vectors = vectors[vectors.any(1)]
        levels, num_codes, width = self.codebooks.shape
        quantizer = faiss.ResidualQuantizer(width, levels, num_codes.bit_length() - 1)
        quantizer.max_beam_size = 1
        quantizer.cp.min_points_per_centroid = 1
        # Fewer items than centroids are repeated.
        quantizer.train(np.resize(vectors, (max(len(vectors), num_codes), width)))
        self.codebooks.copy_(torch.from_numpy(faiss.vector_to_array(quantizer.codebooks).reshape(self.codebooks.shape)))

    @torch.no_grad()
    def codes(self, values: FeatureTensors) -> Tensor:
        """Return the codes of R rows of features by name as rows of the table; int64 [R, L], -1 without content."""
        vectors = self.content(values)
        has_content, codes = vectors.any(1, keepdim=True), []
        for level, centroids in enumerate(self.codebooks.cpu()):
            half = centroids.square().sum(1) / 2
            nearest = torch.cat([(rows @ centroids.T - half).argmax(1) for rows in vectors.split(_BLOCK)])
            codes.append(nearest + level * len(centroids))
            vectors = vectors - centroids[nearest]
        return torch.stack(codes, dim=1).where(has_content, -1)

    def of_items(self, item_idx: Tensor, columns: FeatureTensors) -> Tensor:
        """Return the embeddings [R, D] of `item_idx` int64 [R], rows of `columns`, whose codes are computed once."""
        state = " ".join(f"{b.data_ptr()} {b._version}" for b in (self.codebooks, self.content.projection))
        if state != self._state:
            self._codes, self._state = self.codes(columns), state
        return self.forward(self._codes[item_idx.cpu()].to(item_idx.device))

    def forward(self, codes: Tensor) -> Tensor:
        """Return the embeddings [R, D] of `codes` int64 [R, L]; zeros without content."""
        rows: Tensor = self.table(codes.clamp(min=0))
        return rows.sum(1).where(codes[:, :1] >= 0, 0.0)
