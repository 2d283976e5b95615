"""Tables and pictures of one run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from worlds import write_run, write_world

from recsys.experiments.trained_run import TrainedRun, load_run
from recsys.reports.analysis import error_plots as plots
from recsys.reports.analysis import error_tables as tables
from recsys.reports.analysis.failures import Group, Results, examine
from recsys.reports.analysis.item_descriptions import ItemDescriptions
from recsys.reports.analysis.space import ItemSpace


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("runs")
    return load_run(write_run(folder / "run", write_world(folder / "data"), "split=temporal"))


@pytest.fixture(scope="module")
def results(run: TrainedRun) -> Results:
    return examine(run, 5)


@pytest.fixture(scope="module")
def descriptions(run: TrainedRun) -> ItemDescriptions:
    return ItemDescriptions(run)


def test_weakest_groups() -> None:
    groups = [Group("by", f"g{number}", 0.1 * number, 0.05, 0.9, 1000 + number, 5000) for number in (3, 1, 2)]
    table = tables.weakest(groups, 2)
    assert table.rows == (
        ("by", "g1", "0.1000", "0.0500 to 0.9000", "1,001", "5,000"),
        ("by", "g2", "0.2000", "0.0500 to 0.9000", "1,002", "5,000"),
    )


def test_missed_items(results: Results, descriptions: ItemDescriptions) -> None:
    rows = tables.missed_items(results, descriptions, num=5).rows
    missed = {
        item: int((~results.found[results.item_idx == item]).sum()) for item in np.unique(results.item_idx).tolist()
    }
    worst = sorted(missed.values(), reverse=True)[:5]
    assert [int(wanted) - int(found) for _, wanted, found, _ in rows] == worst
    by_title = {descriptions.title(item): item for item in missed}
    for title, wanted, found, trained in rows:
        item = by_title[title]
        assert int(wanted) == (results.item_idx == item).sum()
        assert int(found) == results.found[results.item_idx == item].sum()
        assert int(trained) == results.dataset.train_count[item]


def test_users(run: TrainedRun, results: Results, descriptions: ItemDescriptions) -> None:
    failed, served = (
        tables.failed_users(results, descriptions, num=3),
        tables.served_users(results, descriptions, num=3),
    )
    assert [float(row[4]) for row in failed.rows] == sorted(results.recall)[:3]
    assert [float(row[4]) for row in served.rows] == pytest.approx(sorted(results.recall)[-3:][::-1], abs=5e-5)
    user_ids, data = run.dataset.user_ids.to_pylist(), run.dataset
    for user_id, history, then, shown, _ in (*failed.rows, *served.rows):
        user = user_ids.index(user_id)
        row = results.requests.user_idx.tolist().index(user)
        events = data.item_idx[data.offsets[user] : data.val_end[user]].tolist()
        if not events:
            assert history == "nothing"
        else:
            assert history.split("; ")[0] == descriptions.title(events[-1])
            assert ("more" in history) == (len(events) > 5)
        wanted = results.item_idx[results.row == row].tolist()
        assert then.split("; ")[:5] == [descriptions.title(item) for item in wanted[:5]]
        for place, title in enumerate(shown.split("; ")):
            item = int(results.shown[row, place])
            assert title == ("✓ " if item in wanted else "") + descriptions.title(item)
    assert "✓" in served.rows[0][3]
    assert "✓" not in failed.rows[0][3]


def test_neighbours(run: TrainedRun, descriptions: ItemDescriptions) -> None:
    space = ItemSpace(run)
    table = tables.neighbours(space, descriptions, items=[2, 0, 1], k=3)
    assert table.columns == ("item", "nearest 1", "nearest 2", "nearest 3")
    # Item 0, unknown items, is not of the corpus.
    assert [row[0] for row in table.rows] == [descriptions.title(2), descriptions.title(1)]
    cosines, nearest = space.neighbours(2, 3)
    assert table.rows[0][1] == f"{descriptions.title(int(nearest[0]))} ({cosines[0]:.2f})"


def test_groups_are_bars() -> None:
    found = [Group("age", f"g{number}", 0.1 * number, 0.05 * number, 0.2 * number, 10, 20) for number in (1, 3, 2)]
    picture = plots.groups(found, 10)
    assert picture is not None
    (axis,) = picture.figure.axes
    assert [float(patch.get_width()) for patch in axis.patches] == pytest.approx([0.1, 0.3, 0.2])  # type: ignore[attr-defined]
    assert [line.get_xdata().tolist() for line in axis.lines] == [
        pytest.approx([0.05 * number, 0.2 * number]) for number in (1, 3, 2)
    ]
    assert "Recall is highest for g3, lowest for g1. g1: 0.1000 (0.0500 to 0.2000, 10 users)" in picture.alt
    assert plots.groups([], 10) is None


def test_the_space_is_drawn(run: TrainedRun, descriptions: ItemDescriptions, tmp_path: Path) -> None:
    space = ItemSpace(run)
    picture = plots.embedding_space(space, descriptions, category="category")
    (axis,) = picture.figure.axes
    drawn = np.concatenate([np.asarray(points.get_offsets()) for points in axis.collections])
    points = space.plane()[0]
    assert np.sort(drawn[:, 0] * 1000 + drawn[:, 1]) == pytest.approx(np.sort(points[:, 0] * 1000.0 + points[:, 1]))
    _, values = descriptions.categories("category")
    labels = values[space.item_idx]
    middles = {
        text.get_text(): text.xy
        for text in axis.texts  # type: ignore[attr-defined]
    }
    assert {*middles} == {"x", "y", "z"}
    assert middles["x"] == pytest.approx(np.median(points[labels == "x"], axis=0))
    same, chance = space.agreement(labels)
    assert f"{same:.0%} of an item's ten nearest items share its category; by chance {chance:.0%} would" in picture.alt
    picture.save(tmp_path / "space.svg")
