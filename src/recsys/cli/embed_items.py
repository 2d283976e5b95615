"""New items, embedded by the item tower of a release, for the index of that release while it runs.

    recsys embed-items production new_items.parquet embedded.parquet --store releases
    recsys embed-items production new_items.parquet embedded.parquet --hosts http://10.0.0.1:8080 ...

The input has `item_id`, as the release's ids are, and any of the columns that the item tower reads and that the release
shows. The output names the version; no index of another takes it. With `--hosts` each of these is given the items
(`RECSYS_ADMIN_TOKEN` is the token of their admin calls).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from recsys.core.schema import Schema, TimeResolution
from recsys.core.types import Float32Array
from recsys.data.batches.batch import FeatureTensors, to_tensor
from recsys.data.dataset import Meta, PreparedDataset
from recsys.data.encoding import FeatureEncoder, as_type, plain
from recsys.experiments.assembly import complete, instantiate
from recsys.experiments.trained_run import stored_config
from recsys.models.items import ItemTower
from recsys.operations.rollout.admin import Admin
from recsys.release.manifest import EMBEDDINGS, ITEM_WEIGHTS, ITEMS, SCHEMA, Manifest
from recsys.release.store import ReleaseStore
from recsys.serving.gateway.remote_host import parse_address
from recsys.serving.host.additions import load_additions, save_additions


class NewItems:
    """The item towers of a release, for items that it does not know: their features place them.

    Args:
        folder: of the release, verified.
        manifest: of the release.

    Raises:
        UserError: its item tower reads no features, or what belongs to its embeddings is not in the release.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest, self.schema = folder, manifest, Schema.load(folder / SCHEMA)
        config, weights = stored_config(folder), load_file(folder / ITEM_WEIGHTS)
        if config.members:
            # Weights and temperatures of the members are in the embeddings.
            self._members = []
            for number, member in enumerate(config.members.values()):
                if member.config.model.learn_temperature:
                    raise UserError(f"{folder}: a member of the blend has a learned temperature, which no file holds")
                own = {n.removeprefix(f"{number}."): w for n, w in weights.items() if n.startswith(f"{number}.")}
                scale = float(member.weight) / float(member.config.model.temperature)
                self._members.append((self._tower(member.config, own), self._is_cosine(member.config), scale))
        else:
            self._members = [(self._tower(config, weights), self._is_cosine(config), 1.0)]
        self._has_bias = bool(config.model.prior_shift.weight)
        self._num_trained = max(tower.num_trained for tower, _, _ in self._members)

    def embed(self, table: pa.Table) -> Float32Array:
        """Embeddings float32 [A, D] of the rows, comparable with those of the index."""
        features = self._features(table)
        parts = []
        with torch.inference_mode():
            for tower, is_cosine, scale in self._members:
                embeddings = tower.embed_new(features)
                parts.append((F.normalize(embeddings, dim=-1) if is_cosine else embeddings) * scale)
            if self._has_bias:
                parts.append(torch.full((len(table), 1), self._bias()))
            joined: Float32Array = torch.cat(parts, dim=1).numpy()
        return joined

    def _tower(self, config: DictConfig, weights: dict[str, Tensor]) -> ItemTower:
        tables = [weights[name] for name in ("table.weight", "pretrained.table.weight") if name in weights]
        num_trained = len(tables[0]) - 1 if tables else 0
        tower: ItemTower = complete(instantiate(config.item_tower), dataset=self._sizes(num_trained), sparse=False)
        tower.load_state_dict(weights)
        if not tower.reads_features:
            raise UserError(f"{self.folder}: its item tower reads no features, so it cannot place new items")
        return tower.eval()

    def _sizes(self, num_trained: int) -> PreparedDataset:
        """What an item tower is built from: sizes and schema; it is given features later."""
        nothing: Any = np.zeros(0, np.int64)
        meta = Meta(
            fingerprint=self.manifest.dataset_fingerprint,
            time_resolution=TimeResolution.NONE,
            num_users=0,
            num_events=0,
            num_trained=num_trained,
            num_seen=num_trained,
            num_known=num_trained,
            num_items=num_trained,
            settings={},
        )
        columns = {f.key: self._encoder(f.name).encode(pa.nulls(0)) for f in self.schema.owned_by("items")}
        return PreparedDataset(
            self.folder, meta, self.schema, nothing, nothing, nothing, nothing, nothing, nothing, nothing, columns
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

    def _bias(self) -> float:
        """Items without training events share one, as popular as the rarest: a new item has it too."""
        rows = np.flatnonzero(np.asarray(pq.read_table(self.folder / ITEMS)["item_idx"]) > self._num_trained)
        if not len(rows):
            raise UserError(
                f"{self.folder}: embeddings hold how popular items are now (model.prior_shift), and the release has no "
                f"item without training events that tells what a new one has"
            )
        return float(load_array(self.folder / EMBEDDINGS)[rows[0], -1])

    @staticmethod
    def _is_cosine(config: DictConfig) -> bool:
        return bool(config.model.similarity == "cosine")


def embed_items(store: str | Path, release: str, items: Path, out: Path) -> str:
    """Write the file of embedded items; the version that it is for.

    Raises:
        UserError: no such release, or one that cannot embed new items; or `items` is not a file of such.
    """
    folder, manifest = ReleaseStore(store).open(release)
    try:
        table = pq.read_table(items)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{items}: unreadable ({error})") from error
    if "item_id" not in table.column_names:
        raise UserError(f"{items}: has no column item_id; found {', '.join(table.column_names)}")
    shown = pq.read_schema(folder / ITEMS)
    kind = shown.field("item_id").type
    ids = as_type(plain(table["item_id"]), kind)
    if ids.null_count:
        raise UserError(f"{items}: item_id: found {table['item_id'].type} with values that are no {kind}, or nulls")
    columns = {"item_id": ids}
    for name in shown.names:
        if name not in ("item_id", "item_idx"):
            given = plain(table[name]) if name in table.column_names else pa.nulls(len(table))
            columns[name] = given.cast(shown.field(name).type) if pa.types.is_null(given.type) else given
    save_additions(pa.table(columns), NewItems(folder, manifest).embed(table), manifest.version, out)
    return manifest.version


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", help="version or alias")
    parser.add_argument("items", type=Path, help="Parquet file of new items")
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--store", default="releases", help="folder of releases")
    parser.add_argument("--hosts", nargs="*", default=[], metavar="URL", help="hosts that get them")
    asked = parser.parse_args(arguments)
    try:
        version = embed_items(asked.store, asked.release, asked.items, asked.out)
        additions = load_additions(asked.out)
        for host in asked.hosts:
            admin = Admin(parse_address(host), os.environ.get("RECSYS_ADMIN_TOKEN"))
            print(f"{host}: {admin.add_items(additions)} items")
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(1) from error
    print(version)


if __name__ == "__main__":
    main()
