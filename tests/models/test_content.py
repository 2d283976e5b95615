"""Vectors of content, and the item tower that has them beside what it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import FEATURES, compose, write_world

from recsys.core.errors import UnsuitableDataError, UserError
from recsys.core.schema import Feature
from recsys.data.batches.batch import FeatureTensors, RaggedTensor
from recsys.data.dataset import PreparedDataset
from recsys.experiments.assembly import build_towers, open_data
from recsys.models.content import ContentVectors
from recsys.models.two_tower import TwoTower

TAGS = Feature("tags", "items", "multi_categorical", "item", 6)
VECTOR = Feature("vector", "items", "vector", "item", 2)
AGE = Feature("age", "items", "numeric", "item", 1)


def bags(*rows: list[int]) -> RaggedTensor:
    values = torch.tensor([code for row in rows for code in row], dtype=torch.int32)
    return RaggedTensor(values, torch.tensor([0, *np.cumsum([len(row) for row in rows])]))


def fitted(values: FeatureTensors, *features: Feature, width: int = 4) -> ContentVectors:
    content = ContentVectors(features, width)
    content.fit(values)
    return content


def test_full_rank_is_the_square_root_of_the_kernel() -> None:
    # With every direction kept, vectors before normalisation are rows of (X X')^(1/4) up to a rotation. The document
    # frequencies of the codes 2, 3, 4 are 2, 2, 2, so all idf are equal and X is easy to write down.
    values: FeatureTensors = {"tags": bags([2, 3], [3, 4], [4, 2], [])}
    found = fitted(values, TAGS, width=3)(values)
    x = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]]) / np.sqrt(2)
    kernel = x @ np.linalg.inv(np.linalg.cholesky(np.eye(3))) @ x.T
    left, extents, _ = np.linalg.svd(kernel)
    root = left @ np.diag(np.sqrt(extents)) @ left.T
    cosines = root / np.sqrt(np.outer(np.diag(root), np.diag(root)))
    # The rank is below the size of the matrix, so the last direction may be missing.
    assert found.shape == (4, 3)
    assert not found[3].any()
    assert torch.allclose(found[:3].norm(dim=1), torch.ones(3))
    ranks = (found[:3] @ found[:3].T).numpy()
    np.testing.assert_allclose(ranks, cosines, atol=1e-4)


def test_rare_codes_weigh_more_and_repeats_count_by_their_logarithm() -> None:
    values: FeatureTensors = {"tags": bags([2, 3], [2, 4], [2, 5, 5], [2, 3])}
    content = fitted(values, TAGS)
    np.testing.assert_allclose(content.idf.numpy()[2:4], [1 + np.log(5 / 5), 1 + np.log(5 / 3)], rtol=1e-6)
    assert not content.idf[:2].any()
    vectors = content(values)
    # Items 0 and 3 are equal. Item 1 shares only the code that every item has.
    assert torch.allclose(vectors[0], vectors[3])
    assert vectors[0] @ vectors[1] < 0.7


def test_new_content_has_the_vector_of_equal_items_and_unknown_content_none() -> None:
    values: FeatureTensors = {"tags": bags([2, 3], [2, 4], [3, 5]), "vector": torch.eye(3, 2)}
    content = fitted(values, TAGS, VECTOR, AGE)
    one: FeatureTensors = {"tags": bags([2, 4], [1], []), "vector": torch.tensor([[0.0, 1.0], [torch.nan] * 2, [0, 0]])}
    found = content(one)
    assert torch.allclose(found[0], content(values)[1], atol=1e-6)
    assert not found[1:].any()


def test_singular_vectors_are_computed_once_for_the_same_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: FeatureTensors = {"tags": bags([2, 3], [2, 4], [3, 5]), "vector": torch.eye(3, 2)}
    first = ContentVectors([TAGS, VECTOR], 4)
    first.fit(values, tmp_path)
    computed = []
    monkeypatch.setattr(ContentVectors, "_fit", lambda self, _: computed.append(self.width))
    again = ContentVectors([TAGS, VECTOR, AGE], 4)
    again.fit({**values, "age": torch.ones(3)}, tmp_path)
    assert not computed
    assert torch.equal(again.projection, first.projection)
    assert torch.equal(again.idf, first.idf)
    # Other content, another width or other columns are computed.
    others: list[tuple[FeatureTensors, ContentVectors]] = [
        ({**values, "tags": bags([2, 3], [2, 4], [3, 4])}, ContentVectors([TAGS, VECTOR], 4)),
        ({**values, "tags": bags([2, 3, 2], [4], [3, 5])}, ContentVectors([TAGS, VECTOR], 4)),
        (values, ContentVectors([TAGS, VECTOR], 3)),
        (values, ContentVectors([TAGS, VECTOR], 4, columns=["tags"])),
    ]
    for content, module in others:
        module.fit(content, tmp_path)
    assert computed == [4, 4, 3, 4]


@pytest.mark.parametrize("columns", [None, ["vector"]])
def test_columns_are_chosen_by_name(columns: list[str] | None) -> None:
    content = ContentVectors([TAGS, VECTOR, AGE], 4, columns=columns)
    assert [feature.name for feature in content.features] == (columns or ["tags", "vector"])


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"content\.columns: items have no content 'tag'; did you mean 'tags'"):
        ContentVectors([TAGS], 4, columns=["tag"])
    with pytest.raises(UnsuitableDataError, match="no text, lists, categories or vectors"):
        ContentVectors([AGE], 4)
    with pytest.raises(UserError, match="fewer than two items with content"):
        fitted({"tags": bags([], [])}, TAGS)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "data")


def build(world: Path, *overrides: str) -> tuple[TwoTower, PreparedDataset]:
    common = ["data=parquet", f"data.root={world}", f"data.cache={world.parent}/cache", "split=leave_last_out"]
    content = ["item_tower=content", "item_tower.content.width=4", "model.dim=12"]
    config = compose("train", [*common, *content, "history.max_events=8", *FEATURES, *overrides])
    dataset = open_data(config)
    return build_towers(config, dataset).eval(), dataset


def test_content_stands_beside_ids_that_count_by_their_evidence(world: Path) -> None:
    model, dataset = build(world)
    tower = model.item_tower
    assert tower.content is not None
    assert tower.table is not None
    assert (tower.is_lookup, tower.reads_features, tower.reads_ids) == (False, True, True)
    item_idx = torch.tensor([0, 1, 2, dataset.num_trained + 1])
    rows = tower(item_idx)
    n = dataset.train_count[1]
    torch.testing.assert_close(rows[1, 4:], tower.table.weight[1] * n / (n + 3))
    assert not rows[[0, 3], 4:].any()
    expected = tower.content(tower.rows(item_idx)) * tower.content_scale
    torch.testing.assert_close(rows[:, :4], expected)
    assert rows[3, :4].any()
    # The same features as a new item.
    torch.testing.assert_close(tower.embed_new(tower.rows(item_idx[3:])), rows[3:])


def test_a_checkpoint_replaces_the_vectors(world: Path) -> None:
    model, _ = build(world)
    other, _ = build(world, "seed=1")
    assert other.item_tower.content is not None
    other.item_tower.content.projection.zero_()
    assert not other.item_tower(torch.arange(1, 5))[:, :4].any()
    other.load_state_dict(model.state_dict())
    rows = torch.arange(1, 5)
    assert torch.equal(other.item_tower(rows), model.item_tower(rows))


def test_content_alone(world: Path) -> None:
    model, _ = build(world, "model.dim=4", "item_tower.use_id=false")
    assert not model.reads_ids
    assert model.item_tower(torch.arange(1, 5)).shape == (4, 4)
    default, _ = build(world, "item_tower.content.width=null")
    assert default.item_tower.content is not None
    assert default.item_tower.content.width == 8
    with pytest.raises(UserError, match=r"content.width: found 4 of dim 12, expected less if .* else the same"):
        build(world, "item_tower.use_id=false")
    with pytest.raises(UserError, match=r"content.width: found 4 of dim 4, expected less"):
        build(world, "model.dim=4")


def test_evidence_without_features_changes_nothing(world: Path) -> None:
    common = ["data=parquet", f"data.root={world}", f"data.cache={world.parent}/cache", "split=leave_last_out"]
    config = compose("train", [*common, "model.dim=8", "item_tower=ids", "+item_tower.id_evidence=3"])
    assert build_towers(config, open_data(config)).item_tower.id_weight is None


def test_gradients_reach_the_scale_and_not_the_vectors(world: Path) -> None:
    model, _ = build(world)
    out: Tensor = model.item_tower.train()(torch.arange(1, 5))
    out.sum().backward()
    assert model.item_tower.content_scale.grad is not None
    assert not any(name.startswith("item_tower.content.") for name, _ in model.named_parameters())
