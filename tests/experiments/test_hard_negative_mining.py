"""Neighbours in an earlier run, against brute force, with data that has changed since."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from worlds import compose, write_run, write_world

from recsys.core.errors import UserError
from recsys.data.dataset import PreparedDataset
from recsys.experiments.assembly import build_module, build_towers, corpus_of, open_data
from recsys.experiments.hard_negative_mining import miner, nearest_items
from recsys.experiments.trained_run import load_run
from recsys.training.negatives import MinedNegatives


def config_of(root: Path, *overrides: str) -> DictConfig:
    common = ["data=parquet", f"data.root={root}", f"data.cache={root.parent / 'cache'}", "split=leave_last_out"]
    return compose("train", [*common, "model.dim=8", *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two worlds with the same ids, of which the second numbers them otherwise, and a run on the first."""
    folder = tmp_path_factory.mktemp("mining")
    for name, seed in (("old", 0), ("new", 1)):
        write_world(folder / name, seed)
    write_run(folder / "run", folder / "old", "item_tower=ids")
    return folder


def ids(dataset: PreparedDataset, item_idx: np.ndarray) -> list[str]:
    return [dataset.item_ids[int(item) - 1].as_py() for item in item_idx]


def test_neighbours_equal_brute_force(folder: Path) -> None:
    run, config = load_run(folder / "run"), config_of(folder / "new")
    dataset = open_data(config)
    corpus = torch.from_numpy(corpus_of(build_towers(config, dataset), dataset))[::2]
    found = nearest_items(run, dataset, corpus=corpus, num_neighbors=4)
    assert found.shape == (dataset.num_items + 1, 4)
    with torch.no_grad():
        embeddings = dict(
            zip(ids(run.dataset, run.corpus), run.model.item_tower(torch.from_numpy(run.corpus)), strict=True)
        )
    wanted = {*ids(dataset, corpus.numpy())}
    shared = [item for item in embeddings if item in wanted]
    assert 10 < len(shared) < len(embeddings)
    matrix = torch.nn.functional.normalize(torch.stack([embeddings[item] for item in shared]), dim=1)
    for item_idx in range(1, dataset.num_items + 1):
        (item,) = ids(dataset, np.array([item_idx]))
        neighbours = found[item_idx].numpy()
        if item not in shared:
            assert neighbours.tolist() == [0, 0, 0, 0]
            continue
        own = shared.index(item)
        scores = matrix @ matrix[own]
        scores[own] = -2.0
        assert ids(dataset, neighbours) == [shared[column] for column in scores.topk(4).indices.tolist()]
    assert found[0].tolist() == [0, 0, 0, 0]


def test_more_neighbours_than_items(folder: Path) -> None:
    run = load_run(folder / "run")
    found = nearest_items(run, run.dataset, corpus=torch.tensor([3, 5, 8]), num_neighbors=4)
    assert [sorted(found[item].tolist()) for item in (3, 5, 8, 4)] == [
        [0, 0, 5, 8],
        [0, 0, 3, 8],
        [0, 0, 3, 5],
        [0, 0, 0, 0],
    ]
    assert found[3, 2:].tolist() == [0, 0]


def test_negatives_are_mined_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(
        folder / "new", "negatives=mined", f"negatives.run={folder / 'run'}", "negatives.num_neighbors=4"
    )
    dataset = open_data(config)
    model = build_towers(config, dataset)
    first = build_module(config, dataset, model=model, mine=miner(config)).negatives
    assert isinstance(first, MinedNegatives)
    corpus = torch.from_numpy(corpus_of(model, dataset))
    expected = nearest_items(load_run(folder / "run"), dataset, corpus=corpus, num_neighbors=4)
    assert torch.equal(first.neighbors, expected)
    assert float(first.probabilities.sum()) == pytest.approx(1.0)

    def opened(path: str) -> None:
        raise AssertionError(path)

    monkeypatch.setattr("recsys.experiments.hard_negative_mining.load_run", opened)
    second = build_module(config, dataset, model=model, mine=miner(config)).negatives
    assert isinstance(second, MinedNegatives)
    assert torch.equal(first.neighbors, second.neighbors)
    # Another number of neighbours is another table.
    config.negatives.num_neighbors = 3
    with pytest.raises(AssertionError):
        build_module(config, dataset, model=model, mine=miner(config))


def test_a_folder_without_a_run_is_refused(folder: Path) -> None:
    config = config_of(folder / "new", "negatives=mined", f"negatives.run={folder / 'nothing'}")
    dataset = open_data(config)
    with pytest.raises(UserError, match="negatives.run=.*nothing: no .*best.ckpt; expected the folder of a finished"):
        build_module(config, dataset, model=build_towers(config, dataset), mine=miner(config))


def test_a_run_with_other_ids_is_refused(folder: Path) -> None:
    root = write_world(folder / "numbers", string_ids=False)
    config = config_of(root, "negatives=mined", f"negatives.run={folder / 'run'}")
    dataset = open_data(config)
    with pytest.raises(UserError, match="item ids are string, expected int64"):
        build_module(config, dataset, model=build_towers(config, dataset), mine=miner(config))
