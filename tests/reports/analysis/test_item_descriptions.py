"""Titles from the source, categories from the prepared data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from worlds import write_run, write_world

from recsys.core.errors import UserError
from recsys.evaluation.slices import ITEM_SLICES, item_slices
from recsys.experiments.trained_run import TrainedRun, load_run
from recsys.reports.analysis.item_descriptions import ItemDescriptions


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("runs")
    return load_run(write_run(folder / "run", write_world(folder / "data", string_ids=False)))


def raw(run: TrainedRun, column: str) -> dict[object, object]:
    table = pq.read_table(Path(run.config.data.root) / "items.parquet")
    return dict(zip(table["item_id"].to_pylist(), table[column].to_pylist(), strict=True))


def test_titles(run: TrainedRun) -> None:
    # Different for every item: a title is no feature of the prepared data.
    assert "title" not in {feature.name for feature in run.dataset.schema.features}
    descriptions, titles = ItemDescriptions(run), raw(run, "title")
    without = 0
    for item, item_id in enumerate(run.dataset.item_ids.to_pylist(), 1):
        assert descriptions.title(item) == titles.get(item_id, str(item_id))
        without += item_id not in titles
    assert without > 0
    assert descriptions.title(0) == "unknown item"


def test_another_column(run: TrainedRun) -> None:
    descriptions, prices = ItemDescriptions(run, "price"), raw(run, "price")
    item = next(i for i, n in enumerate(run.dataset.item_ids.to_pylist(), 1) if prices.get(n) is not None)
    assert float(descriptions.title(item)) == prices[run.dataset.item_ids[item - 1].as_py()]
    with pytest.raises(UserError, match="title: the items table has no column 'titel'; did you mean 'title'"):
        ItemDescriptions(run, "titel")
    with pytest.raises(UserError, match=r"title: column 'tags' is list<.*>, expected strings or numbers"):
        ItemDescriptions(run, "tags")


def test_search_and_examples(run: TrainedRun) -> None:
    descriptions = ItemDescriptions(run)
    found = descriptions.search("tItLe 1")
    assert [descriptions.title(item) for item in found]
    everyone = [descriptions.title(item) for item in range(1, run.dataset.num_items + 1)]
    assert [descriptions.title(item) for item in found] == [title for title in everyone if title.startswith("Title 1")]
    assert descriptions.search("no such").tolist() == []
    examples = descriptions.examples(4)
    assert (examples[0], examples[-1]) == (1, run.dataset.num_trained)
    assert len(examples) == 4


def test_categories(run: TrainedRun) -> None:
    descriptions = ItemDescriptions(run)
    for name, of in (("category", raw(run, "category")), ("tags", raw(run, "tags"))):
        found_name, values = descriptions.categories(name)
        assert found_name == name
        assert len(values) == run.dataset.num_items + 1
        assert values[0] is None
        for item, item_id in enumerate(run.dataset.item_ids.to_pylist(), 1):
            value = of.get(item_id)
            if name == "tags":
                # A bag is kept as its sorted codes: one of its entries stands for it.
                assert (values[item] in value) if value else values[item] is None
            else:
                assert values[item] == value
    assert descriptions.categories()[0] == "category"
    with pytest.raises(UserError, match="category: no feature .* is 'categry'; did you mean 'category'"):
        descriptions.categories("categry")


def test_without_a_table_of_items(tmp_path: Path) -> None:
    root = write_world(tmp_path / "data")
    (root / "items.parquet").unlink()
    run = load_run(write_run(tmp_path / "run", root, "item_tower=ids"))
    descriptions = ItemDescriptions(run)
    assert descriptions.title(1) == run.dataset.item_ids[0].as_py()
    name, values = descriptions.categories()
    assert name == "popularity"
    assert values.tolist() == np.array(ITEM_SLICES)[item_slices(run.dataset)].tolist()


def test_shards_with_ids_of_another_width(tmp_path: Path) -> None:
    root = write_world(tmp_path / "data", string_ids=False)
    table = pq.read_table(root / "items.parquet")
    (root / "items.parquet").unlink()
    (root / "items.parquet").mkdir()
    narrow = table.set_column(0, "item_id", table["item_id"].cast(pa.int32()))
    pq.write_table(narrow.slice(0, 50), root / "items.parquet/0.parquet")
    pq.write_table(narrow.slice(50), root / "items.parquet/1.parquet")
    run = load_run(write_run(tmp_path / "run", root))
    titles = dict(zip(table["item_id"].to_pylist(), table["title"].to_pylist(), strict=True))
    descriptions = ItemDescriptions(run)
    for item, item_id in enumerate(run.dataset.item_ids.to_pylist(), 1):
        assert descriptions.title(item) == titles.get(item_id, str(item_id))
