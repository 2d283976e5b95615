"""The item tower, which turns item_idx into item embeddings. Shapes: R items, D dim."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.core.errors import UnsuitableDataError
from recsys.core.schema import UNKNOWN_ITEM
from recsys.data.batches.batch import FeatureTensors
from recsys.data.dataset import DataSizes
from recsys.models.crossing import MLP, Crossing
from recsys.models.features import FeatureEmbedding, FeatureRows, mask_codes
from recsys.models.pretrained import PretrainedBuilder
from recsys.models.priors import ItemPriors


class ItemTower(nn.Module):
    """The sum of an id embedding, a network over features, and pretrained embeddings; each may be left out.

    Items without a trained id share one learned embedding (row 0), so that features alone place a new item.

    Args:
        dim: width of the embeddings, D.
        sizes: schema, number of trained items and features of the items.
        use_id: learn an embedding for each trained item.
        use_features: read the features of items.
        feature_width: width of each feature's embedding.
        crossing: builder of the network over features.
        unknown_rate: share of ids that training replaces by the unknown item, if there are features.
        sparse: update the id table by rows, which is faster for large tables.
        pretrained: builder of a table of embeddings that were learned elsewhere; None for no table.
        priors: learned functions of the age and recent popularity of items, which become a bias; None for no bias.
    """

    def __init__(
        self,
        dim: int,
        sizes: DataSizes,
        *,
        use_id: bool = True,
        use_features: bool = True,
        feature_width: int = 32,
        crossing: Crossing = MLP,
        unknown_rate: float = 0.05,
        sparse: bool = False,
        pretrained: PretrainedBuilder | None = None,
        priors: ItemPriors | None = None,
    ) -> None:
        super().__init__()
        self.priors = priors
        self.dim, self.num_trained = dim, sizes.num_trained
        features = sizes.schema.owned_by("items") if use_features else ()
        if not use_id and not features and use_features and pretrained is None:
            raise UnsuitableDataError("item_tower.use_id=false: the data has no features of items, expected some")
        if not use_id and not features and pretrained is None:
            raise ValueError("an item tower needs ids, features or both; this one has neither")
        self.table = nn.Embedding(self.num_trained + 1, dim, sparse=sparse) if use_id else None
        if self.table is not None:
            nn.init.normal_(self.table.weight, std=dim**-0.5)
        self.features = FeatureEmbedding(features, feature_width) if features else None
        self.rows = FeatureRows({f.name: sizes.item_columns[f.key] for f in features})
        self.mlp: nn.Module | None = None
        if self.features is not None:
            self.mlp = crossing(self.features.widths, dim)
        self.pretrained = None
        if pretrained is not None:
            self.pretrained = pretrained(dim=dim, num_items=self.num_trained, sparse=sparse)
        self.unknown_rate = unknown_rate if self.features is not None else 0.0

    @property
    def is_lookup(self) -> bool:
        """True if an embedding is one row of a dense table, so that computing it twice costs nothing."""
        return self.mlp is None and self.pretrained is None and self.table is not None and not self.table.sparse

    @property
    def reads_ids(self) -> bool:
        """True if each trained item has its own embedding."""
        return self.table is not None or self.pretrained is not None

    @property
    def reads_features(self) -> bool:
        """True if features place an item without a trained id."""
        return self.mlp is not None

    def forward(self, item_idx: Tensor) -> Tensor:
        """Return the embeddings [R, D] of `item_idx` int64 [R]."""
        if self.mlp is None or self.features is None:
            return self._ids(item_idx)
        by_features = self.mlp(self.features(self.rows(item_idx)))
        return by_features + self._ids(item_idx) if self.reads_ids else by_features  # type: ignore[no-any-return]

    def embed_new(self, features: FeatureTensors) -> Tensor:
        """Return the embeddings [R, D] of items outside the data set, from R rows of features by name."""
        assert self.mlp is not None, "new items need an item tower that reads features"
        assert self.features is not None
        by_features = self.mlp(self.features(features))
        if not self.reads_ids:
            return by_features  # type: ignore[no-any-return]
        return by_features + self._ids(torch.tensor([UNKNOWN_ITEM]))  # type: ignore[no-any-return]

    def _ids(self, item_idx: Tensor) -> Tensor:
        rows = torch.where(item_idx <= self.num_trained, item_idx, UNKNOWN_ITEM)
        rows = mask_codes(rows, self.unknown_rate, training=self.training, unknown=UNKNOWN_ITEM)
        parts = [table(rows) for table in (self.table, self.pretrained) if table is not None]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]  # type: ignore[no-any-return]
