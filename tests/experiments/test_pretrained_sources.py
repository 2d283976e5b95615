"""Where pretrained embeddings come from: against dense algebra, the generator, and the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from handmade import DAY, handmade, random_users, training_only
from worlds import compose, write_run, write_world

from recsys.baselines import als
from recsys.baselines.interactions import Interactions
from recsys.core.errors import UserError
from recsys.data.dataset import PreparedDataset
from recsys.experiments.assembly import open_data
from recsys.experiments.pretrained_sources import ALSEmbeddings, EarlierRunEmbeddings, SVDEmbeddings, oldest
from recsys.experiments.trained_run import load_run


def test_svd_by_hand() -> None:
    # Users 1 and 2 know items 1 and 2, user 3 item 3: normalised [[.5, .5], [.5, .5]] and [1]. Both parts have one
    # singular value, 1, with the item vectors (1, 1) / sqrt(2) and (1): inner products .5, .5, .5 and 1.
    table = SVDEmbeddings()(handmade([([1, 2], [], []), ([2, 1], [], []), ([3], [], [])]), 2)
    assert (table.shape, table.dtype) == ((4, 2), np.float32)
    expected = [[0, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(table @ table.T, expected, atol=1e-6)


def test_svd_equals_dense_algebra() -> None:
    dataset = handmade(random_users(np.random.default_rng(0), 60, 25))
    matrix = np.zeros((dataset.num_users, dataset.num_trained))
    for user, (begin, end) in enumerate(zip(dataset.offsets, dataset.train_end, strict=False)):
        matrix[user, dataset.item_idx[begin:end] - 1] = 1
    scaled = matrix / np.sqrt(np.maximum(matrix.sum(1), 1))[:, None] / np.sqrt(np.maximum(matrix.sum(0), 1))
    _, values, items = np.linalg.svd(scaled)
    expected = (items[:5].T * values[:5]) @ items[:5]
    table = SVDEmbeddings(seed=3)(dataset, 5)
    np.testing.assert_allclose(table[1:] @ table[1:].T, expected, atol=1e-5)
    assert np.array_equal(table, SVDEmbeddings(seed=3)(dataset, 5))


def test_als_is_the_generators() -> None:
    dataset = handmade(random_users(np.random.default_rng(1), 50, 20))
    generator = als.ALS(factors=4, alpha=7.0, l2=0.1, iterations=3, seed=5)
    generator.fit(Interactions(dataset, "train"))
    table = ALSEmbeddings(alpha=7.0, l2=0.1, iterations=3, seed=5)(dataset, 4)
    assert not table[0].any()
    np.testing.assert_allclose(table[1:], generator.item_factors, atol=1e-5)
    assert generator.item_factors.shape == (dataset.num_trained, 4)


def test_the_oldest_events_by_hand() -> None:
    # Times 0, 1, 4 and 2, 3, 6 days; quantile .5 is 2.5, quantile .2 is the second of them.
    dataset = training_only([[(1, 0), (2, DAY), (3, 4 * DAY)], [(1, 2 * DAY), (2, 3 * DAY), (3, 6 * DAY)]])
    assert (oldest(dataset, 0.5).train_end - dataset.offsets[:-1]).tolist() == [2, 1]
    assert (oldest(dataset, 0.2).train_end - dataset.offsets[:-1]).tolist() == [1, 0]
    assert oldest(dataset, 1.0) is dataset
    with pytest.raises(UserError, match="until=0.5 with data.time=none"):
        oldest(training_only([[(1, 0)]], "none"), 0.5)


@pytest.mark.parametrize("source", [SVDEmbeddings(until=0.5), ALSEmbeddings(until=0.5)])
def test_items_of_later_events_are_not_pretrained(source: SVDEmbeddings | ALSEmbeddings) -> None:
    """Items 1 to 4 until a day, then item 5: it has no row, and who took it changes nothing."""
    early = [[(1, 0), (2, 1)], [(2, 0), (3, 1)], [(3, 0), (4, 1)], [(1, 0), (4, 1)]]
    tables = []
    for late in ([5, 5, 5, 5, 1, 2, 3, 4], [5, 4, 5, 3, 5, 2, 5, 1]):
        users = [[*history, (late[2 * n], DAY), (late[2 * n + 1], 2 * DAY)] for n, history in enumerate(early)]
        tables.append(source(training_only(users, num_items=5), 2))
    assert tables[0][1:5].any(axis=1).all()
    assert not tables[0][5].any()
    np.testing.assert_allclose(tables[0] @ tables[0].T, tables[1] @ tables[1].T, atol=1e-5)


def test_a_width_that_the_data_does_not_have() -> None:
    with pytest.raises(UserError, match="found 3, expected less than 3: there are 4 users and 3 items"):
        SVDEmbeddings()(handmade([([1, 2], [], []), ([2, 1], [], []), ([3], [], []), ([1], [], [])]), 3)


@pytest.mark.parametrize("source", [SVDEmbeddings, ALSEmbeddings])
@pytest.mark.parametrize("until", [0.0, 1.5])
def test_invalid_shares_are_refused(source: type[SVDEmbeddings | ALSEmbeddings], until: float) -> None:
    with pytest.raises(ValueError, match=f"until: found {until}"):
        source(until=until)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and a world that shares some of its items under other numbers."""
    folder = tmp_path_factory.mktemp("pretraining")
    write_run(folder / "run", write_world(folder / "old"), "model.prior_shift.weight=0.5")
    root = write_world(folder / "new", seed=1)
    table = pq.read_table(root / "interactions.parquet")
    # Item i001 is unknown to the run.
    renamed = pc.if_else(pc.equal(table["item_id"], "i001"), "another", table["item_id"])
    pq.write_table(
        table.set_column(table.column_names.index("item_id"), "item_id", renamed), root / "interactions.parquet"
    )
    return folder


def data_of(root: Path) -> PreparedDataset:
    overrides = ["data=parquet", f"data.root={root}", f"data.cache={root.parent}/cache", "split=leave_last_out"]
    return open_data(compose("train", overrides))


def test_an_earlier_run_by_item_id(folder: Path) -> None:
    run, dataset = load_run(folder / "run"), data_of(folder / "new")
    table = EarlierRunEmbeddings(str(folder / "run"))(dataset, 16)
    with torch.inference_mode():
        theirs = run.model.normalize(run.model.item_tower(torch.from_numpy(run.corpus))).numpy()
    theirs_of = dict(zip(run.dataset.item_ids.take(pa.array(run.corpus - 1)).to_pylist(), theirs, strict=True))
    assert table.shape == (dataset.num_trained + 1, 16)
    assert not table[0].any()
    known = 0
    for item_id, row in zip(dataset.item_ids.to_pylist(), table[1:], strict=False):
        expected = theirs_of.get(item_id, np.zeros(16))
        np.testing.assert_allclose(row, expected, atol=1e-6)
        known += item_id in theirs_of
    assert 30 < known < dataset.num_trained
    assert "another" in dataset.item_ids.slice(0, dataset.num_trained).to_pylist()


def test_runs_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    source = EarlierRunEmbeddings(str(folder / "run"))
    with pytest.raises(UserError, match="width: found 8, but items of .* have 16"):
        source(data_of(folder / "new"), 8)
    with pytest.raises(UserError, match="item_id is string, but int64 in this data"):
        source(data_of(write_world(tmp_path / "numbers", string_ids=False)), 16)
    with pytest.raises(UserError, match="not a folder"):
        EarlierRunEmbeddings(str(tmp_path / "none"))(data_of(folder / "new"), 16)
