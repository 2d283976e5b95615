"""What is drawn, not how it looks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from written import CONFIG, write, write_log

from recsys.evaluation.significance import Comparison, Mean, means
from recsys.reports.comparison import learning, scatter
from recsys.reports.comparison import run_plots as plots
from recsys.reports.comparison.differences import Difference
from recsys.reports.comparison.measured import MeasuredRun
from recsys.reports.comparison.reading import read_runs
from recsys.reports.comparison.styles import RunStyle, styles_of
from recsys.reports.presentation.colours import BASELINE, BETTER, OTHERS, UNCLEAR, WORSE
from recsys.reports.presentation.picture import Picture


def axes(picture: Picture) -> Axes:
    (axis,) = picture.figure.axes
    return axis


def style(runs: list[MeasuredRun]) -> Mapping[str, RunStyle]:
    return styles_of(runs, runs[0], metric="recall@10")


def found(runs: list[MeasuredRun]) -> dict[str, Mean]:
    return {run.name: means(run.per_user, ["recall@10"])[0] for run in runs}


def names(axis: Axes) -> set[str]:
    return {text.get_text() for text in axis.texts}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[MeasuredRun]:
    folder = tmp_path_factory.mktemp("runs")
    config = CONFIG | {"evaluation": {"metric": "val/ndcg@10"}}
    for number, name in enumerate("abc"):
        users = (np.arange(40) % 5 < number + 1).astype(float).tolist()
        slices = [value if place % 2 else None for place, value in enumerate(users)]
        path = write(
            folder / name,
            {"recall@5": [u / 2 for u in users], "recall@10": users, "recall@100": users, "tail/recall@10": slices},
            {"seconds": 10.0 * (number + 1)},
            config,
            coverage_at_10=0.5 - 0.1 * number,
            popularity_at_10=1.0 + number,
        )
        write_log(path, 0, [{"step": 9, "val/ndcg@10": 0.1}, {"step": 19, "val/ndcg@10": 0.1 * number}])
    return read_runs([folder / name for name in "abc"])


def test_looks(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"r{number}", {"recall@10": [0.1 * number]}) for number in range(9)]
    runs = read_runs(paths)
    looks = styles_of(runs, runs[0], metric="recall@10")
    assert [name for name, look in looks.items() if look.is_named] == ["r0", "r4", "r5", "r6", "r7", "r8"]
    assert looks["r0"].colour == BASELINE
    assert {looks[f"r{number}"].colour for number in (1, 2, 3)} == {OTHERS}
    assert len({look.colour for look in looks.values()}) == len({look.mark for look in looks.values()}) == 7


def test_recall_curves(runs: list[MeasuredRun]) -> None:
    picture = plots.recall_curves(runs, style(runs), baseline="a")
    axis = axes(picture)
    assert [line.get_xdata().tolist() for line in axis.lines] == [[5, 10, 100]] * 3
    assert [line.get_ydata().tolist() for line in axis.lines] == [
        pytest.approx([value / 2, value, value]) for value in (0.2, 0.4, 0.6)
    ]
    assert {"a", "b", "c"} <= names(axis)
    assert axis.get_ylim()[0] == 0
    assert [text.get_text() for text in picture.figure.texts][0] == "c finds most, whatever is shown"
    assert "b: 0.2000 at 5, 0.4000 at 10, 0.4000 at 100" in picture.alt


def test_the_scatter_of_accuracy_over_variety(runs: list[MeasuredRun]) -> None:
    picture = scatter.against(runs, style(runs), found=found(runs), other="coverage@10")
    marks = [line for line in axes(picture).lines if line.get_marker() != "None"]
    assert [(float(m.get_xdata()[0]), float(m.get_ydata()[0])) for m in marks] == [
        pytest.approx(point) for point in ((0.5, 0.2), (0.4, 0.4), (0.3, 0.6))
    ]
    assert "c has the highest recall@10, a shows most of the corpus" in picture.alt
    assert "b: recall@10 0.4000, coverage@10 0.4000" in picture.alt
    metrics = [{**run.metrics, "test/coverage@10": 0.5} for run in runs[:2]]
    rows = [dataclasses.replace(run.row, metrics=changed) for run, changed in zip(runs, metrics, strict=False)]
    equal = [dataclasses.replace(run, row=row) for run, row in zip(runs, rows, strict=False)]
    picture = scatter.against(equal, style(equal), found=found(equal), other="coverage@10")
    assert "b has the highest recall@10; a and b have the same coverage@10" in picture.alt
    less_popular = scatter.against(runs, style(runs), found=found(runs), other="popularity@10")
    assert "a shows the least popular items" in less_popular.alt
    assert axes(less_popular).get_xscale() == "log"


def test_cost(runs: list[MeasuredRun]) -> None:
    picture = scatter.cost(runs, style(runs), found=found(runs))
    assert "c has the highest recall@10, a took the least time" in picture.alt
    assert "c: recall@10 0.6000 in 30 seconds" in picture.alt
    intervals = [line for line in axes(picture).lines if line.get_marker() == "None"]
    # 40 users with .2, .4 and .6: 1.96 standard errors to both sides.
    for line, mean in zip(intervals, (0.2, 0.4, 0.6), strict=True):
        reach = 1.96 * (mean * (1 - mean) / 40) ** 0.5
        assert line.get_ydata().tolist() == pytest.approx([mean - reach, mean + reach], abs=0.03)


def test_learning(runs: list[MeasuredRun]) -> None:
    assert learning.selecting_metric(runs, "recall@10") == "val/ndcg@10"
    picture = learning.learning_curves(runs, style(runs), curve="val/ndcg@10")
    lines = axes(picture).lines
    assert [line.get_ydata().tolist() for line in lines[::2]] == [[0.1, 0], [0.1, 0.1], [0.1, 0.2]]
    # The ring is around the first best value, where early stopping counts from.
    rings = [(line.get_xdata()[0], float(line.get_ydata()[0])) for line in lines[1::2]]
    assert rings == [(10, 0.1), (10, 0.1), (20, 0.2)]
    assert "Still rising at the end: c." in picture.alt
    assert "a: best 0.1000 at step 10 of 20" in picture.alt


def test_learning_without_a_common_metric(runs: list[MeasuredRun], tmp_path: Path) -> None:
    path = write(tmp_path / "d", {"recall@10": [0.1]})
    write_log(path, 0, [{"step": 9, "val/recall@10": 0.1}])
    (other,) = read_runs([path])
    assert learning.selecting_metric([other], "recall@10") == "val/recall@10"
    assert learning.selecting_metric([other, *runs], "recall@10") == "val/recall@10"
    assert learning.selecting_metric([other, *runs], "mrr@10") is None


def test_forest() -> None:
    gains = [("b", 0.2, 0.3, 0.01), ("c", 0.2, 0.1, 0.04), ("d", 0.2, 0.21, 0.5)]
    gained = [
        Difference(run, "a", Comparison("recall@10", old, new, new - old, new - old - 0.02, 1.0, p, 9), p)
        for run, old, new, p in gains
    ]
    picture = plots.forest(gained)
    axis = axes(picture)
    spots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [float(line.get_xdata()[0]) for line in spots] == pytest.approx([0.5, -0.5, 0.05])
    assert [to_hex(line.get_color()).upper() for line in spots] == [BETTER, WORSE, UNCLEAR]
    spans = [line.get_xdata() for line in axis.lines if line.get_solid_capstyle() == "butt"]
    assert [float(low) for low, _ in spans] == pytest.approx([0.4, -0.6, -0.05])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["b", "c", "d"]
    # From top to bottom.
    assert axis.yaxis_inverted()
    assert "+50.0%   p = 0.010" in names(axis)
    assert "2 of 3 differences shown are more than chance" in picture.alt
    # Where a baseline has nothing, all are drawn as they are.
    nothing = Difference("e", "a", Comparison("recall@10", 0.0, 0.1, 0.1, 0.05, 0.15, 0.5, 9), 0.5)
    spots = [line for line in axes(plots.forest([*gained, nothing])).lines if line.get_marker() == "o"]
    assert [float(line.get_xdata()[0]) for line in spots] == pytest.approx([0.1, -0.1, 0.01, 0.1])


def test_slices(runs: list[MeasuredRun]) -> None:
    picture = plots.slices(runs, style(runs), names=["tail/recall@10"])
    axis = axes(picture)
    widths = [float(patch.get_width()) for patch in axis.patches]  # type: ignore[attr-defined]
    assert widths == pytest.approx([0.2, 0.4, 0.6])
    assert axis.get_xlim()[0] == 0
    assert [label.get_text() for label in axis.get_yticklabels()] == ["rare items (tail)\n20 users"]
    assert {"a", "b", "c", "0.2000", "0.4000", "0.6000"} <= names(axis)
    assert "rare items (tail): a 0.2000, b 0.4000, c 0.6000" in picture.alt
