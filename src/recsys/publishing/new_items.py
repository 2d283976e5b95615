"""Embedding of items outside a release, to add them to its index while it is served."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from recsys.core.errors import UserError
from recsys.core.index_time import IndexTime
from recsys.core.progress import track
from recsys.core.schema import UNKNOWN_ITEM, TimeResolution
from recsys.core.time_units import PER_SECOND
from recsys.core.types import Float32Array, Int64Array
from recsys.data.batches.batch import FeatureTensors, to_tensor
from recsys.data.content_encoders import CACHE, BadImageError, image_path, open_encoder
from recsys.data.dataset import NO_BIRTH, DataSizes
from recsys.data.encoding import FeatureEncoder, plain, to_floats
from recsys.experiments.assembly import complete, has_item_bias, instantiate, new_items_scale
from recsys.experiments.trained_run import stored_config
from recsys.models.items import ItemTower
from recsys.models.priors import ItemPriors
from recsys.publishing.index_times import parse_moment
from recsys.publishing.table_files import read_table
from recsys.publishing.towers import num_trained, read_weights
from recsys.release.files import read_embeddings, read_file, read_schema, read_vocabulary
from recsys.release.files import read_table as read_items
from recsys.release.manifest import CONFIG, ITEM_WEIGHTS, ITEMS, Manifest
from recsys.release.store import ReleaseStore
from recsys.serving.host.additions import save_additions

# Items that are embedded at once.
BLOCK = 65536


class _Member(NamedTuple):
    """One model of a release: its item tower, and the factors of its columns in the item embeddings."""

    tower: ItemTower
    is_cosine: bool
    scale: float
    has_bias: bool
    bias_scale: float


class NewItems:
    """The item towers of a release, applied to items outside its vocabulary, which their features alone describe.

    Args:
        folder: folder of the release, verified.
        manifest: manifest of the release.
        now: second since 1970 at which the items begin to be served; None for the time of the index, or the newest
            birth of an item if that is later.
        images: folder that the paths of images are relative to.

    Raises:
        UserError: If its item tower reads no features, or the release lacks a value that belongs to its embeddings.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, now: int | None = None, images: str = "") -> None:
        self.folder, self.manifest, self.now, self._images = folder, manifest, now, images
        self.schema = read_schema(folder, manifest)
        config = stored_config(folder, read_file(folder, CONFIG, manifest))
        weights = read_weights(folder, ITEM_WEIGHTS, manifest)
        self._born = config.data.columns.get("born")
        self._unit = config.data.get("time_unit")
        for feature in self.schema.owned_by("items"):
            if feature.encoder:
                open_encoder(feature.encoder, feature.encoder_digest).cache = Path(config.data.cache) / CACHE
        self._members = []
        for number, member in enumerate(config.members.values()):
            # Weights and temperatures of the members are in the embeddings.
            if member.config.model.learn_temperature and not manifest.temperatures:
                raise UserError(f"{folder}: a member of the blend has a learned temperature, which no file holds")
            own = {n.removeprefix(f"{number}."): w for n, w in weights.items() if n.startswith(f"{number}.")}
            usual = float(member.config.model.temperature)
            scale = float(member.weight) / (manifest.temperatures[number] if manifest.temperatures else usual)
            self._members.append(self._member(member.config, own, scale=scale, bias_scale=float(member.weight)))
        self._has_bias = bool(config.members) and has_item_bias(config)
        # Of a blend; a single model has that of its member.
        self._scale = new_items_scale(config) if config.members else 1.0
        if not config.members:
            self._members = [self._member(config, weights, scale=1.0, bias_scale=manifest.temperature)]
        if not any(member.tower.reads_features for member in self._members):
            raise UserError(f"{self.folder}: its item tower reads no features, so it cannot place new items")

    def embed(self, table: pa.Table) -> Float32Array:
        """Return the embeddings float32 [A, D] of the rows, comparable with those of the index."""
        blocks = [table.slice(begin, BLOCK) for begin in range(0, max(len(table), 1), BLOCK)]
        born = self._births(table)
        at = range(0, max(len(table), 1), BLOCK)
        tracked = track([*zip(blocks, at, strict=True)], "embedding items", total=len(table), unit="items",
                        size=lambda block: len(block[0]))  # fmt: skip
        index_time = self._index_time(born)
        return np.concatenate([self._embed(block, born[begin : begin + BLOCK], index_time) for block, begin in tracked])

    def _embed(self, table: pa.Table, born: Int64Array, index_time: IndexTime) -> Float32Array:
        features = self._features(table)
        parts = []
        with torch.inference_mode():
            for number, (tower, is_cosine, scale, has_bias, bias_scale) in enumerate(self._members):
                if tower.reads_features:
                    embeddings = tower.embed_new(features)
                else:
                    # The row that a blend gives to the items that this member cannot place.
                    embeddings = tower(torch.full((len(table),), UNKNOWN_ITEM))
                parts.append((F.normalize(embeddings, dim=-1) if is_cosine else embeddings) * scale)
                if has_bias:
                    priors = _prior(tower.priors, born, index_time) * bias_scale
                    parts.append((self._fixed(number, parts, bias_scale) + priors).unsqueeze(1))
            if self._has_bias:
                parts.append(self._fixed(len(self._members), parts, 1.0).expand(len(table), 1))
            joined: Float32Array = (torch.cat(parts, dim=1) * self._scale).numpy()
        return joined

    def _member(self, config: DictConfig, weights: dict[str, Tensor], *, scale: float, bias_scale: float) -> _Member:
        tower, is_cosine = self._tower(config, weights), bool(config.model.similarity == "cosine")
        new, has_bias = new_items_scale(config), tower.priors is not None or has_item_bias(config)
        return _Member(tower, is_cosine, scale * new, has_bias, bias_scale * new)

    def _fixed(self, number: int, parts: list[Tensor], scale: float) -> Tensor:
        """Return the bias of items without training events, apart from their priors, as it is in embeddings.

        Args:
            number: place in `Manifest.new_item_biases`.
            parts: columns before it.
            scale: factor of the bias.
        """
        if self.manifest.new_item_biases:
            return torch.tensor([self.manifest.new_item_biases[number]]) * scale
        # In an early release any item without training events shows it.
        trained = num_trained(self.manifest, read_weights(self.folder, ITEM_WEIGHTS, self.manifest))
        rows = np.flatnonzero(np.asarray(read_items(self.folder, ITEMS, self.manifest)["item_idx"]) > trained)
        if not len(rows):
            raise UserError(
                f"{self.folder}: embeddings contain a bias of items (model.prior_shift, model.new_items_offset), and "
                "the release has no item without training events whose value a new item could use; publish it again"
            )
        column = sum(part.shape[1] for part in parts)
        return torch.tensor([float(read_embeddings(self.folder, self.manifest)[rows[0], column])])

    def _index_time(self, born: Int64Array) -> IndexTime:
        """Return the time in which the items are served: that of the index, or of a later day on which they begin."""
        times = self.manifest.index_time
        now = self.now
        if now is None:
            now = max(int(times.get("now", 0)), *([int(born.max())] if (born != NO_BIRTH).any() else []), 0)
        return IndexTime(now, float(times.get("horizon_days", 1.0)))

    def _births(self, table: pa.Table) -> Int64Array:
        """Return the births of the rows in seconds, `NO_BIRTH` without one; int64 [A]."""
        if self._born is None or self._born not in table.column_names:
            return np.full(len(table), NO_BIRTH)
        values = plain(table[self._born])
        divisor = 1
        if pa.types.is_string(values.type):
            values = pc.cast(values, pa.timestamp("s"))
        elif not (pa.types.is_timestamp(values.type) or pa.types.is_date(values.type)):
            divisor = PER_SECOND[self._unit] if self._unit is not None else 1
        seconds = to_floats(values) / divisor
        return np.where(np.isnan(seconds), NO_BIRTH, np.floor(np.nan_to_num(seconds)).astype(np.int64))

    def _tower(self, config: DictConfig, weights: dict[str, Tensor]) -> ItemTower:
        tables = [weights[n] for n in ("id_rows", "table.weight", "pretrained.table.weight") if n in weights]
        sizes = self._sizes(len(tables[0]) - 1 if tables else 0)
        reads_age, recency = "priors.age" in weights, "priors.recency" in weights
        more = {}
        if reads_age or recency:
            half_lives = config.model.priors.half_lives_days if recency else ()
            more["priors"] = ItemPriors(reads_age=reads_age, half_lives_days=half_lives)
        tower: ItemTower = complete(instantiate(config.item_tower), sizes=sizes, sparse=False, **more)
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
        known = read_vocabulary(self.folder, feature.key, self.manifest) if feature.has_vocabulary else None
        return FeatureEncoder(feature, known, folder=self._images)

    def _features(self, table: pa.Table) -> FeatureTensors:
        columns = {}
        for feature in self.schema.owned_by("items"):
            given = table[feature.name] if feature.name in table.column_names else pa.nulls(len(table))
            try:
                columns[feature.name] = to_tensor(self._encoder(feature.name).encode(given))
            except BadImageError as error:
                paths = [path and image_path(self._images, path) for path in plain(given).to_pylist()]
                row = paths.index(error.path)
                raise UserError(f"column '{feature.name}', row {row + 1}: {error}; expected an image") from error
        return columns


def _prior(priors: ItemPriors | None, born: Int64Array, index_time: IndexTime) -> Tensor:
    """Return the logits float32 [A] that priors give to items without events."""
    logits = torch.zeros(len(born))
    if priors is None:
        return logits
    if priors.recency is not None:
        # An item that was just born has collected what is expected of it, and no event.
        logits += priors.of_states(torch.tensor([*[0.0] * len(priors.half_lives_days), 1.0]))
    return logits + priors.age_bias(born, index_time) if priors.age is not None else logits


def embed_items(store: str | Path, release: str, *, items: Path, out: Path, now: str | int | None = None) -> str:
    """Embed the rows of a file.

    Args:
        store: folder of releases.
        release: version or alias.
        items: Parquet, CSV or JSON Lines file with a column of items, named as in training (`data.columns.item_id`) or
            `item_id`, and any columns that the item tower reads or the release shows.
        out: file to write.
        now: date, time or seconds since 1970 at which the items begin to be served; None for the time of the index, or
            the newest birth if that is later.

    Returns:
        The version of the release. Only an index of this version takes the file.

    Raises:
        UserError: If there is no such release, it cannot embed new items, or `items` is not such a file.
    """
    folder, manifest = ReleaseStore(store).open(release)
    embedder = NewItems(folder, manifest, now=parse_moment(now, "now"), images=str(Path(items).parent))
    shown = read_items(folder, ITEMS, manifest).schema
    kind = shown.field("item_id").type
    texts = [field.name for field in shown if pa.types.is_string(field.type)]
    config = stored_config(folder, read_file(folder, CONFIG, manifest))
    table = read_table(items, "items", id_type=kind, data=config.data, texts=texts)
    ids = plain(table["item_id"])
    columns = {"item_id": ids}
    for name in shown.names:
        if name not in ("item_id", "item_idx"):
            given = plain(table[name]) if name in table.column_names else pa.nulls(len(table))
            try:
                columns[name] = given.cast(shown.field(name).type)
            except pa.ArrowException as error:
                raise UserError(f"{items}: column '{name}' holds {given.type} ({error})") from error
    save_additions(pa.table(columns), embedder.embed(table), version=manifest.version, path=out)
    return manifest.version
