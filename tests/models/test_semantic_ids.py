"""Semantic ids: codes of content with learned embeddings, beside ids and features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import FEATURES, compose, write_world

from recsys.core.errors import UnsuitableDataError
from recsys.core.schema import Feature
from recsys.data.batches.batch import FeatureTensors
from recsys.experiments.assembly import build_towers, open_data
from recsys.models.semantic_ids import SemanticIds
from recsys.models.two_tower import TwoTower

VECTOR = Feature("vector", "items", "vector", "item", 3)


def test_each_level_codes_what_the_levels_before_it_left() -> None:
    ids = SemanticIds([VECTOR], 4, num_bits=1, num_levels=2, width=3)
    ids.content.projection.copy_(torch.eye(3))
    ids.codebooks.copy_(torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[0, 0, 0.6], [0, 0, -0.6]]]))
    # Vectors have unit length: (.8, 0, .6) is nearest to (1, 0, 0), which leaves (-.2, 0, .6).
    values: FeatureTensors = {"vector": torch.tensor([[4.0, 0, 3], [0, 4, -3], [0, 0, 0], [torch.nan] * 3])}
    codes = ids.codes(values)
    assert codes.tolist() == [[0, 2], [1, 3], [-1, -1], [-1, -1]]
    rows = ids(codes)
    torch.testing.assert_close(rows[0], ids.table.weight[0] + ids.table.weight[2])
    assert not rows[2:].any()


@pytest.mark.parametrize("num_items", [3, 60])
def test_centroids_are_those_of_the_groups_of_items(num_items: int) -> None:
    rng = np.random.default_rng(0)
    group = np.arange(num_items) % 3
    vectors = np.eye(3)[group] + 0.01 * rng.normal(size=(num_items, 3))
    values: FeatureTensors = {"vector": torch.from_numpy(vectors.astype(np.float32))}
    ids, again = (SemanticIds([VECTOR], 4, num_bits=2, num_levels=1, width=3) for _ in range(2))
    ids.fit(values)
    again.fit(values)
    assert torch.equal(ids.codebooks, again.codebooks)
    codes = ids.codes(values)[:, 0].numpy()
    # Four centroids for three groups: no code belongs to two of them.
    assert all(len(set(group[codes == code])) == 1 for code in set(codes))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "data")


def build(world: Path, *overrides: str) -> TwoTower:
    data = ["data=parquet", f"data.root={world}", f"data.cache={world.parent}/cache", "split=leave_last_out"]
    config = compose(
        "train", [*data, "item_tower=semantic_ids", "item_tower.id_evidence=3", "model.dim=12", *overrides]
    )
    return build_towers(config, open_data(config)).eval()


def test_they_are_added_to_ids_and_features(world: Path) -> None:
    tower = build(world, *FEATURES).item_tower
    assert tower.semantic_ids is not None
    assert (tower.is_lookup, tower.reads_features, tower.reads_ids) == (False, True, True)
    new = torch.tensor([tower.num_trained + 1])
    before = tower(new)
    torch.testing.assert_close(tower.embed_new(tower.rows(new)), before)
    with torch.no_grad():
        tower.semantic_ids.table.weight += 1.0
    # Two codes, each with an embedding that is one larger.
    torch.testing.assert_close(tower(new), before + 2.0)
    tower(new).sum().backward()
    assert {name for name, _ in tower.semantic_ids.named_parameters()} == {"table.weight"}
    assert tower.semantic_ids.table.weight.grad is not None


def test_a_checkpoint_replaces_the_codes(world: Path) -> None:
    model, other = build(world, *FEATURES), build(world, *FEATURES, "seed=1")
    rows = torch.arange(1, 9)
    assert other.item_tower.semantic_ids is not None
    other.item_tower.semantic_ids.codebooks.zero_()
    assert not torch.equal(other.item_tower(rows), model.item_tower(rows))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.item_tower(rows), model.item_tower(rows))


def test_items_without_content_have_none(world: Path) -> None:
    ignored = [f"+data.features.items.{name}.ignore=true" for name in ("category", "tags", "visual")]
    tower = build(world, *ignored, "item_tower.use_features=false").item_tower
    assert tower.semantic_ids is None
    with pytest.raises(UnsuitableDataError, match="use_id=false: the data has no features of items"):
        build(world, *ignored, "+data.features.items.price.ignore=true", "item_tower.use_id=false")
    with pytest.raises(ValueError, match="num_levels: found 0, expected at least 1"):
        SemanticIds([VECTOR], 4, num_levels=0)
