"""The printed summary of a run: its rows, and the line about new items."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from worlds import compose

from recsys.experiments.run_folder import RunFolder
from recsys.experiments.run_summary import new_items, print_run


@pytest.mark.parametrize(
    ("share", "recall", "expected"),
    [
        (0.067, 0.25, "new items: 6.7% of the relevant test items, recall@100 0.2500, 4.3% of the 100 shown"),
        (0.067, 0.0, "new items: 6.7% of the relevant test items, recall@100 0.0000, 4.3% of the 100 shown: "
         "NO NEW ITEM IS FOUND; only features of items can place them, try +experiment=recommended"),
        (0.01, 0.0, "new items: 1.0% of the relevant test items, recall@100 0.0000, 4.3% of the 100 shown"),
        (0.0, None, None),
        (None, None, None),
    ],
)  # fmt: skip
def test_the_line_about_new_items(share: float | None, recall: float | None, expected: str | None) -> None:
    found = {"relevant": share, "recall@100": recall, "shown@100": 0.043}
    metrics = {f"test/cold_items/{name}": value for name, value in found.items() if value is not None}
    # Validation does not count beside a test.
    metrics |= {"test/num_users": 9.0, "val/cold_items/relevant": 0.5, "val/cold_items/recall@100": 0.0}
    assert new_items(metrics) == expected


def test_a_run_without_test() -> None:
    found = {"val/cold_items/relevant": 0.5, "val/cold_items/recall@100": 0.0, "val/cold_items/shown@100": 0.0}
    line = new_items(found)
    assert line is not None
    assert line.startswith("new items: 50.0% of the relevant val items")
    assert line.endswith("only features of items can place them, try +experiment=recommended")
    # A run of a recipe has followed that advice.
    found_by_recipe = new_items(found, from_recipe=True)
    assert found_by_recipe is not None
    assert found_by_recipe.endswith("only features of items can place them, try model.new_items_lift=1")


def test_slices_are_rows_of_the_table(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, compose("train", []))
    names = ["test/cold_items/shown@5", "test/among_cold_items/recall@10", "test/best_reachable/cold_items/recall@100"]
    names += ["test_refreshed/recall@10", "test/age_1_to_7_days/recall@10", "test/best_reachable/recall@10"]
    names += ["test/best_without_popularity/cold_items/shown@10"]
    run.write_metrics({name: 0.25 for name in names} | {"test/num_users": 1.0})
    output = io.StringIO()
    print_run(run, selection="val/ndcg@10", console=Console(file=output, width=120))
    for name in names:
        part, _, row = name.rpartition("@")[0].partition("/")
        assert f"{part} │ {row} " in " ".join(output.getvalue().split()), name
    assert "new items" not in output.getvalue()
