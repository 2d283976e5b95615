"""The item tower, which turns item_idx into item embeddings. Shapes: R items, D dim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from recsys.core.errors import UnsuitableDataError
from recsys.core.schema import FIRST_CODE, UNKNOWN_ITEM
from recsys.core.types import Int64Array
from recsys.data.batches.batch import FeatureTensors
from recsys.data.dataset import DataSizes
from recsys.models.admission import Admission
from recsys.models.content import ContentBuilder, ContentVectors, contents_of
from recsys.models.crossing import MLP, Crossing
from recsys.models.features import FeatureEmbedding, FeatureRows, mask_codes
from recsys.models.pretrained import PretrainedBuilder
from recsys.models.priors import ItemPriors
from recsys.models.semantic_ids import SemanticIdsBuilder
from recsys.models.sharded_table import ShardedTable, Sharding, id_table


class ItemTower(nn.Module):
    """The sum of an id embedding, a network over features, and pretrained embeddings; each may be left out.

    Items without a trained id share one learned embedding (row 0), so that features alone place a new item. With
    `id_evidence` it is zero instead, and an id with few events counts little.

    Content stands beside the sum: the embedding is [frozen vectors of the content, sum], so that the similarity of a
    user with an item is the one of its content plus the one that is learned.

    Args:
        dim: width of the embeddings, D.
        sizes: schema, number of trained items and features of the items.
        use_id: learn an embedding for each trained item.
        use_features: read the features of items.
        feature_width: width of each feature's embedding.
        crossing: builder of the network over features.
        unknown_rate: share of ids that training replaces by the unknown item, if there are features.
        sparse: update the id table by rows, which is faster for large tables.
        sharding: place of the id table, see `id_table`.
        pretrained: builder of a table of embeddings that were learned elsewhere; None for no table.
        priors: learned functions of the age and recent popularity of items, which become a bias; None for no bias.
        content: builder of frozen vectors of content, which take their width of `dim`; None for no content.
        semantic_ids: builder of learned embeddings of codes of the content; None for none. Ignored if items have no
            content.
        id_evidence: the embedding of an id with n training events is multiplied by n / (n + id_evidence); None for 1.
            Ignored if neither features nor content could place an item instead.
        init_std: deviation of the first id embeddings; None for `dim ** -0.5`.
        admission: rows of the id table, if there are fewer than trained items; None for one for each.
        id_rows: int64 [num_trained + 1], row of each item in that table; None if weights that are loaded have it.
    """

    content_scale: nn.Parameter
    id_weight: Tensor | None
    id_rows: Tensor | None

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
        sharding: Sharding = "replicated",
        pretrained: PretrainedBuilder | None = None,
        priors: ItemPriors | None = None,
        content: ContentBuilder | None = None,
        semantic_ids: SemanticIdsBuilder | None = None,
        id_evidence: float | None = None,
        init_std: float | None = None,
        admission: Admission | None = None,
        id_rows: Int64Array | None = None,
    ) -> None:
        super().__init__()
        self.priors = priors
        self.dim, self.num_trained = dim, sizes.num_trained
        columns = sizes.schema.owned_by("items")
        features = columns if use_features else ()
        if not contents_of(columns):
            semantic_ids = None
        is_learned = use_id or bool(features) or any(part is not None for part in (pretrained, semantic_ids))
        if not is_learned and use_features:
            raise UnsuitableDataError("item_tower.use_id=false: the data has no features of items, expected some")
        # By default a third of the dimensions is learned: 128 beside 256 of content.
        self.content = None if content is None else content(columns, 2 * dim // 3 if is_learned else dim)
        self._content_table, self._content_state = torch.zeros(0), ""
        if self.content is not None:
            dim -= self.content.width
            if dim < 0 or is_learned == (dim == 0):
                raise ValueError(
                    f"content.width: found {self.content.width} of dim {self.dim}, expected less if ids or features "
                    "are learned beside the content, else the same"
                )
            self.content_scale = nn.Parameter(torch.ones(()))
        elif not is_learned:
            raise ValueError("an item tower needs ids, features, content or several; this one has none")
        self.semantic_ids = None if semantic_ids is None else semantic_ids(columns, dim)
        self.table = None
        self.register_buffer("id_rows", None)
        num_rows = self.num_trained
        if use_id and admission is not None and admission.capacity is not None:
            num_rows = admission.capacity
            self.id_rows = torch.zeros(self.num_trained + 1, dtype=torch.int64)
            if id_rows is not None:
                self.id_rows.copy_(torch.from_numpy(id_rows))
        if use_id:
            if init_std is not None and init_std < 0:
                raise ValueError(f"init_std: found {init_std}, expected at least 0, or null")
            std = dim**-0.5 if init_std is None else init_std
            self.table = id_table(num_rows + 1, dim, sharding=sharding, std=std, sparse=sparse)
        self.features = FeatureEmbedding(features, feature_width) if features else None
        reads_content = self.content is not None or self.semantic_ids is not None
        self.rows = FeatureRows({f.name: sizes.item_columns[f.key] for f in (columns if reads_content else features)})
        self.mlp: nn.Module | None = None
        if self.features is not None:
            self.mlp = crossing(self.features.widths, dim)
        self.pretrained = None
        if pretrained is not None:
            self.pretrained = pretrained(dim=dim, num_items=self.num_trained, sparse=sparse)
        has_features = self.features is not None or reads_content
        self.unknown_rate = unknown_rate if has_features else 0.0
        self.register_buffer("id_weight", None)
        if id_evidence is not None and has_features and self.reads_ids:
            if id_evidence < 0:
                raise ValueError(f"id_evidence: found {id_evidence}, expected at least 0")
            counts = torch.from_numpy(sizes.train_count[: self.num_trained + 1].astype(np.float32))
            if self.id_rows is not None and self.pretrained is None:
                counts = counts * (self.id_rows > 0)
            self.id_weight = (counts / (counts + id_evidence)).nan_to_num().unsqueeze(1)

    @property
    def is_lookup(self) -> bool:
        """True if an embedding is one row of a dense table, so that computing it twice costs nothing."""
        parts = (self.mlp, self.pretrained, self.content, self.semantic_ids)
        return all(part is None for part in parts) and self.table is not None and not self.table.sparse

    @property
    def reads_ids(self) -> bool:
        """True if each trained item has its own embedding."""
        return self.table is not None or self.pretrained is not None

    @property
    def evicted(self) -> Tensor | None:
        """Trained items that only the shared row embeds, bool [num_trained + 1]; None if all are placed."""
        if self.id_rows is None or self.reads_features or self.pretrained is not None:
            return None
        return self.id_rows == 0

    @property
    def reads_features(self) -> bool:
        """True if features or content place an item without a trained id."""
        return any(part is not None for part in (self.mlp, self.content, self.semantic_ids))

    def fit_content(self, cache: Path | None = None) -> None:
        """Compute the weights of the content vectors from all items of the data set, or take them from a cache."""
        for part in (self.content, self.semantic_ids):
            if part is not None:
                # Row 0 belongs to no item.
                part.fit(self.rows(torch.arange(1, self.rows.num_rows)), cache)

    @torch.no_grad()
    def place_unknown_items(self) -> None:
        """Give items that neither a trained id nor a feature places the mean of the trained embeddings.

        Their logits are then the mean logit of the user. Training without features never reads the row that they share,
        unless items without a row of their own do.
        """
        if self.table is None or self.reads_features:
            return
        if self.id_rows is not None and bool((self.id_rows[FIRST_CODE:] == UNKNOWN_ITEM).any()):
            return
        if isinstance(self.table, ShardedTable):
            self.table.set_row(UNKNOWN_ITEM, self.table.mean_of_known())
        else:
            self.table.weight[UNKNOWN_ITEM] = self.table.weight[UNKNOWN_ITEM + 1 :].mean(0)

    def forward(self, item_idx: Tensor) -> Tensor:
        """Return the embeddings [R, D] of `item_idx` int64 [R]."""
        features = self.rows(item_idx) if self.mlp is not None else {}
        content = None
        if self.content is not None:
            content = self._content_rows(self.content)[item_idx.to("cpu")].to(item_idx.device)
        codes = None
        if self.semantic_ids is not None:
            codes = self.semantic_ids.of_items(item_idx, self.rows.columns)
        return self._join(content, features, item_idx, codes)

    def embed_new(self, features: FeatureTensors) -> Tensor:
        """Return the embeddings [R, D] of items outside the data set, from R rows of features by name."""
        assert self.reads_features, "new items need an item tower that reads features or content"
        num_rows = next(len(f) if isinstance(f, Tensor) else len(f.offsets) - 1 for f in features.values())
        content = None if self.content is None else self.content(features)
        codes = None if self.semantic_ids is None else self.semantic_ids(self.semantic_ids.codes(features))
        return self._join(content, features, torch.full((num_rows,), UNKNOWN_ITEM), codes)

    def _content_rows(self, content: ContentVectors) -> Tensor:
        """Return the vectors [N + 1, W] of all items, computed again when a checkpoint has replaced the weights."""
        weights = content.projection
        if (state := f"{weights.data_ptr()} {weights._version}") != self._content_state:
            self._content_table, self._content_state = content(self.rows.columns), state
        return self._content_table

    def _join(self, content: Tensor | None, features: FeatureTensors, item_idx: Tensor, codes: Tensor | None) -> Tensor:
        parts = [] if codes is None else [codes]
        if self.mlp is not None and self.features is not None:
            parts.insert(0, self.mlp(self.features(features)))
        if self.reads_ids:
            parts.append(self._ids(item_idx))
        learned = sum(parts[1:], start=parts[0]) if parts else None
        if content is None:
            assert learned is not None
            return learned
        scaled = content * self.content_scale
        return scaled if learned is None else torch.cat([scaled, learned], dim=1)

    def _ids(self, item_idx: Tensor) -> Tensor:
        rows = torch.where(item_idx <= self.num_trained, item_idx, UNKNOWN_ITEM)
        rows = mask_codes(rows, self.unknown_rate, training=self.training, unknown=UNKNOWN_ITEM)
        of_table = rows if self.id_rows is None else self.id_rows[rows]
        tables = ((self.table, of_table), (self.pretrained, rows))
        parts = [table(chosen) for table, chosen in tables if table is not None]
        embeddings: Tensor = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return embeddings if self.id_weight is None else embeddings * self.id_weight[rows]
