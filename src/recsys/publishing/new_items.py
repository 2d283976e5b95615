"""Embedding of items outside a release, to add them to its index while it is served."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor

from recsys.core.columns import load_array
from recsys.core.errors import UserError
from recsys.core.progress import track
from recsys.core.schema import UNKNOWN_ITEM, Schema, TimeResolution
from recsys.core.types import Float32Array
from recsys.data.batches.batch import FeatureTensors, to_tensor
from recsys.data.dataset import DataSizes
from recsys.data.encoding import FeatureEncoder, plain
from recsys.experiments.assembly import complete, has_item_bias, instantiate
from recsys.experiments.trained_run import stored_config
from recsys.models.items import ItemTower
from recsys.publishing.table_files import read_table
from recsys.release.manifest import EMBEDDINGS, ITEM_WEIGHTS, ITEMS, SCHEMA, Manifest
from recsys.release.store import ReleaseStore
from recsys.serving.host.additions import save_additions

# Items that are embedded at once.
BLOCK = 65536


class _Member(NamedTuple):
    tower: ItemTower
    is_cosine: bool
    scale: float
    has_bias: bool


class NewItems:
    """The item towers of a release, applied to items outside its vocabulary, which their features alone describe.

    Args:
        folder: folder of the release, verified.
        manifest: manifest of the release.

    Raises:
        UserError: If its item tower reads no features, or the release lacks a value that belongs to its embeddings.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest, self.schema = folder, manifest, Schema.load(folder / SCHEMA)
        config, weights = stored_config(folder), load_file(folder / ITEM_WEIGHTS)
        if config.members:
            # Weights and temperatures of the members are in the embeddings.
            self._members: list[_Member] = []
            for number, member in enumerate(config.members.values()):
                if member.config.model.learn_temperature:
                    raise UserError(f"{folder}: a member of the blend has a learned temperature, which no file holds")
                own = {n.removeprefix(f"{number}."): w for n, w in weights.items() if n.startswith(f"{number}.")}
                scale = float(member.weight) / float(member.config.model.temperature)
                self._members.append(self._member(member.config, own, scale=scale))
            self._has_bias = has_item_bias(config)
        else:
            self._members = [self._member(config, weights, scale=1.0)]
            self._has_bias = False
        if not any(member.tower.reads_features for member in self._members):
            raise UserError(f"{self.folder}: its item tower reads no features, so it cannot place new items")
        self._num_trained = max(member.tower.num_trained for member in self._members)

    def embed(self, table: pa.Table) -> Float32Array:
        """Return the embeddings float32 [A, D] of the rows, comparable with those of the index."""
        blocks = [table.slice(begin, BLOCK) for begin in range(0, max(len(table), 1), BLOCK)]
        tracked = track(blocks, "embedding items", total=len(table), unit="items", size=len)
        return np.concatenate([self._embed(block) for block in tracked])

    def _embed(self, table: pa.Table) -> Float32Array:
        features = self._features(table)
        parts = []
        with torch.inference_mode():
            for tower, is_cosine, scale, has_bias in self._members:
                if tower.reads_features:
                    embeddings = tower.embed_new(features)
                else:
                    # The row that a blend gives to the items that this member cannot place.
                    embeddings = tower(torch.full((len(table),), UNKNOWN_ITEM))
                parts.append((F.normalize(embeddings, dim=-1) if is_cosine else embeddings) * scale)
                if has_bias:
                    parts.append(self._bias(sum(part.shape[1] for part in parts)).expand(len(table), 1))
            if self._has_bias:
                parts.append(self._bias(sum(part.shape[1] for part in parts)).expand(len(table), 1))
            joined: Float32Array = torch.cat(parts, dim=1).numpy()
        return joined

    def _member(self, config: DictConfig, weights: dict[str, Tensor], *, scale: float) -> _Member:
        has_priors = any(name.startswith("priors.") for name in weights)
        own = {name: value for name, value in weights.items() if not name.startswith("priors.")}
        is_cosine = bool(config.model.similarity == "cosine")
        return _Member(self._tower(config, own), is_cosine, scale, has_priors or has_item_bias(config))

    def _tower(self, config: DictConfig, weights: dict[str, Tensor]) -> ItemTower:
        tables = [weights[name] for name in ("table.weight", "pretrained.table.weight") if name in weights]
        num_trained = len(tables[0]) - 1 if tables else 0
        tower: ItemTower = complete(instantiate(config.item_tower), sizes=self._sizes(num_trained), sparse=False)
        tower.load_state_dict(weights)
        return tower.eval()

    def _sizes(self, num_trained: int) -> DataSizes:
        return DataSizes(
            schema=self.schema,
            time_resolution=TimeResolution.NONE,
            num_trained=num_trained,
            trained_users=np.zeros(0, bool),
            item_columns={f.key: self._encoder(f.name).encode(pa.nulls(0)) for f in self.schema.owned_by("items")},
            train_count=np.zeros(num_trained + 1, np.int64),
        )

    def _encoder(self, name: str) -> FeatureEncoder:
        feature = next(f for f in self.schema.owned_by("items") if f.name == name)
        path = self.folder / f"vocabularies/{feature.key}.parquet"
        return FeatureEncoder(
            feature, pq.read_table(path)["value"].combine_chunks() if feature.has_vocabulary else None
        )

    def _features(self, table: pa.Table) -> FeatureTensors:
        columns = {}
        for feature in self.schema.owned_by("items"):
            given = table[feature.name] if feature.name in table.column_names else pa.nulls(len(table))
            columns[feature.name] = to_tensor(self._encoder(feature.name).encode(given))
        return columns

    def _bias(self, column: int) -> Tensor:
        """Return a bias of new items, the one that items without training events share.

        Args:
            column: its dimension in the embeddings of the release.
        """
        rows = np.flatnonzero(np.asarray(pq.read_table(self.folder / ITEMS)["item_idx"]) > self._num_trained)
        if not len(rows):
            raise UserError(
                f"{self.folder}: embeddings contain a bias of items (model.prior_shift, model.new_items_offset), and "
                "the release has no item without training events whose value a new item could use"
            )
        return torch.tensor([float(load_array(self.folder / EMBEDDINGS)[rows[0], column])])


def embed_items(store: str | Path, release: str, *, items: Path, out: Path) -> str:
    """Embed the rows of a file.

    Args:
        store: folder of releases.
        release: version or alias.
        items: Parquet, CSV or JSON Lines file with a column of items, named as in training (`data.columns.item_id`) or
            `item_id`, and any columns that the item tower reads or the release shows.
        out: file to write.

    Returns:
        The version of the release. Only an index of this version takes the file.

    Raises:
        UserError: If there is no such release, it cannot embed new items, or `items` is not such a file.
    """
    folder, manifest = ReleaseStore(store).open(release)
    shown = pq.read_schema(folder / ITEMS)
    kind = shown.field("item_id").type
    texts = [field.name for field in shown if pa.types.is_string(field.type)]
    table = read_table(items, "items", id_type=kind, data=stored_config(folder).data, texts=texts)
    ids = plain(table["item_id"])
    columns = {"item_id": ids}
    for name in shown.names:
        if name not in ("item_id", "item_idx"):
            given = plain(table[name]) if name in table.column_names else pa.nulls(len(table))
            try:
                columns[name] = given.cast(shown.field(name).type)
            except pa.ArrowException as error:
                raise UserError(f"{items}: column '{name}' holds {given.type} ({error})") from error
    save_additions(pa.table(columns), NewItems(folder, manifest).embed(table), version=manifest.version, path=out)
    return manifest.version
