"""The pretrained part of an item tower."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import handmade
from worlds import compose, write_run, write_world

from recsys.core.errors import UserError
from recsys.data.dataset import PreparedDataset
from recsys.experiments.assembly import build_towers, corpus_of, open_data
from recsys.experiments.trained_run import load_run
from recsys.models.items import ItemTower
from recsys.models.pretrained import PretrainedItems
from recsys.training.optimizers import AdamW

DIM, WIDTH = 6, 2
TABLE = np.array([[0, 0], [3, 4], [0, 0], [5, 12]], np.float32)


@pytest.fixture
def dataset() -> PreparedDataset:
    """Three items."""
    return handmade([([1, 2, 3], [], []), ([1, 2], [], []), ([1], [], [])])


def source(dataset: PreparedDataset, width: int) -> np.ndarray:
    assert (dataset.num_trained, width) == (3, WIDTH)
    return TABLE


def filled(dataset: PreparedDataset, **settings: object) -> PretrainedItems:
    module = PretrainedItems(source, DIM, num_items=dataset.num_trained, width=WIDTH, **settings)  # type: ignore[arg-type]
    assert not module.table.weight.any()
    module.fill(dataset)
    return module


def test_values_by_hand(dataset: PreparedDataset) -> None:
    module = filled(dataset).eval()
    # Squares of what is there: 9 + 16 + 25 + 144 = 194 in four values; they become 3 / 6 on average.
    expected = torch.from_numpy(TABLE) * (0.5 / 48.5) ** 0.5
    torch.testing.assert_close(module.table.weight.detach(), expected)
    assert float(module.table.weight[[1, 3]].square().mean()) == pytest.approx(0.5)
    with torch.no_grad():
        module.projection.weight.copy_(torch.arange(12.0).view(6, 2))
    rows = torch.tensor([3, 0, 1])
    torch.testing.assert_close(module(rows), expected[rows] @ torch.arange(12.0).view(6, 2).T)


def test_the_projection_begins_at_the_size_of_an_id_embedding() -> None:
    torch.manual_seed(1)
    module = PretrainedItems(
        lambda dataset, width: np.random.default_rng(0).normal(size=(901, width)),  # noqa: ARG005
        64,
        num_items=900,
        width=32,
    )
    module.fill(None)  # type: ignore[arg-type]
    out = module.eval()(torch.arange(901)).detach()
    assert float(out.square().mean()) == pytest.approx(1 / 64, rel=0.1)


def test_dropout_applies_to_the_read_embeddings(dataset: PreparedDataset) -> None:
    module = filled(dataset, dropout=0.5)
    with torch.no_grad():
        module.projection.weight.copy_(torch.eye(DIM)[:, :WIDTH])
    rows = torch.ones(4000, dtype=torch.int64)
    shares = module(rows)[:, :WIDTH] / module.table.weight[1]
    assert set(shares.detach().round(decimals=4).unique().tolist()) == {0.0, 2.0}
    assert float(shares.mean()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(filled(dataset, dropout=0.5).eval().table.weight, module.table.weight)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_frozen_or_not(dataset: PreparedDataset, frozen: bool, sparse: bool) -> None:
    pretrained = partial(PretrainedItems, source, width=WIDTH, frozen=frozen, dropout=0.0)
    tower = ItemTower(DIM, dataset.sizes, sparse=sparse, pretrained=pretrained)
    assert tower.pretrained is not None
    tower.pretrained.fill(dataset)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    optimizer = AdamW(lr=0.1).optimizer(tower)
    tower(torch.tensor([1, 2])).square().sum().backward()
    assert tower.pretrained.table.sparse == (sparse and not frozen)
    optimizer.step()
    moved = {name for name, value in tower.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"table.weight", "pretrained.projection.weight", *([] if frozen else ["pretrained.table.weight"])}


def test_an_item_tower_adds_it_to_the_id(dataset: PreparedDataset) -> None:
    tower = ItemTower(DIM, dataset.sizes, pretrained=partial(PretrainedItems, source, width=WIDTH)).eval()
    assert tower.pretrained is not None
    assert tower.table is not None
    tower.pretrained.fill(dataset)
    # Items that are not trained share row 0, of which nothing is pretrained.
    rows = torch.tensor([1, 3, 0, 7])
    known = torch.tensor([1, 3, 0, 0])
    torch.testing.assert_close(tower(rows), tower.table(known) + tower.pretrained(known))
    assert torch.equal(tower(rows[2:]), tower.table.weight[[0, 0]])
    assert not tower.is_lookup
    alone = ItemTower(DIM, dataset.sizes, use_id=False, pretrained=partial(PretrainedItems, source, width=WIDTH)).eval()
    assert alone.reads_ids
    assert alone.pretrained is not None
    assert torch.equal(alone(rows), alone.pretrained(known))


def test_embeddings_of_another_shape_are_refused(dataset: PreparedDataset) -> None:
    module = PretrainedItems(lambda *_: TABLE[:, :1], DIM, num_items=3, width=WIDTH)
    with pytest.raises(UserError, match=r"found embeddings \[4, 1\], expected \[4, 2\] \(width=2\)"):
        module.fill(dataset)
    nothing = PretrainedItems(lambda *_: np.zeros((4, 2)), DIM, num_items=3, width=WIDTH)
    with pytest.raises(UserError, match="no embedding for any item"):
        nothing.fill(dataset)
    with pytest.raises(ValueError, match="width: found 0"):
        PretrainedItems(source, DIM, num_items=3, width=0)


def test_only_a_model_that_is_to_be_trained_asks_the_source(tmp_path: Path) -> None:
    """A run opens although what it was pretrained with is gone."""
    root = write_world(tmp_path / "data")
    earlier = write_run(tmp_path / "earlier", root)
    path = write_run(
        tmp_path / "run",
        root,
        "item_tower=pretrained",
        "pretrained@item_tower.pretrained=earlier_run",
        f"item_tower.pretrained.source.path={earlier}",
        seed=1,
    )
    before = load_run(path).model.item_tower.pretrained
    assert before is not None
    assert bool(before.table.weight[1:].any(1).all())
    earlier.rename(tmp_path / "moved")
    again = load_run(path)
    assert again.model.item_tower.pretrained is not None
    assert torch.equal(again.model.item_tower.pretrained.table.weight, before.table.weight)
    with pytest.raises(UserError, match="is not a folder"):
        build_towers(again.config, again.dataset)


def test_a_corpus_of_pretrained_items_alone(tmp_path: Path) -> None:
    root = write_world(tmp_path / "data")
    common = ["data=parquet", f"data.root={root}", f"data.cache={tmp_path}/cache", "model.dim=8"]
    only = ["item_tower.use_id=false", "item_tower.use_features=false"]
    config = compose("train", [*common, "item_tower=pretrained", *only])
    dataset = open_data(config)
    assert corpus_of(build_towers(config, dataset), dataset).tolist() == list(range(1, dataset.num_trained + 1))
