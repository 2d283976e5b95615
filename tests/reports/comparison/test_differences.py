"""Comparisons whose p-values are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from written import write

from recsys.core.errors import UserError
from recsys.evaluation.significance import Comparison, compare_runs
from recsys.reports.comparison.differences import Difference, chosen_metrics, differences, slice_metrics
from recsys.reports.comparison.measured import MeasuredRun
from recsys.reports.comparison.reading import read_runs

# The smallest p-value of 10,000 samples: (0 + 1) / (10,000 + 1), two-sided.
SURE = 2 / 10_001


@pytest.fixture
def runs(tmp_path: Path) -> list[MeasuredRun]:
    """b gains .1 for everyone in recall and loses .2 in hit; c is a with another tail."""
    base = [0.0, 0.2, 0.4, 0.5]
    tail: list[float | None] = [None, None, 0.5, 0.0]
    columns = {
        "a": {"recall@10": base, "hit@10": base, "tail/recall@10": tail},
        "b": {
            "recall@10": [x + 0.1 for x in base],
            "hit@10": [x - 0.2 for x in base],
            "tail/recall@10": [None, None, 1.0, 0.5],
        },
        "c": {"recall@10": base, "hit@10": base, "tail/recall@10": [0.5, 0.5, None, None]},
    }
    return read_runs([write(tmp_path / name, users) for name, users in columns.items()])


def test_holm_over_all_runs_and_metrics(runs: list[MeasuredRun]) -> None:
    found = differences(runs, ["recall@10", "hit@10"], baseline=runs[0])
    assert [(d.paired.metric, d.run, d.baseline) for d in found] == [
        ("recall@10", "b", "a"),
        ("recall@10", "c", "a"),
        ("hit@10", "b", "a"),
        ("hit@10", "c", "a"),
    ]
    # Four comparisons: two sure ones, times 4 and 3, the second not below the first; two without any difference.
    assert [d.p_value for d in found] == pytest.approx([4 * SURE, 1, 4 * SURE, 1])
    assert [d.verdict for d in found] == ["better", "unclear", "worse", "unclear"]
    gained, lost = found[0], found[2]
    assert (gained.paired.second, gained.paired.first) == pytest.approx((0.375, 0.275))
    assert gained.relative == pytest.approx((0.1 / 0.275,) * 3)
    assert lost.paired.difference == pytest.approx(-0.2)


def test_all_pairs(runs: list[MeasuredRun]) -> None:
    found = differences(runs, ["recall@10"], baseline=runs[0], all_pairs=True)
    assert [(d.run, d.baseline) for d in found] == [("b", "a"), ("c", "a"), ("c", "b")]
    assert [d.p_value for d in found] == pytest.approx([3 * SURE, 1, 3 * SURE])
    assert [d.verdict for d in found] == ["better", "unclear", "worse"]


def test_another_baseline(runs: list[MeasuredRun]) -> None:
    found = differences(runs, ["recall@10"], baseline=runs[1])
    assert [(d.run, d.baseline, d.verdict) for d in found] == [("a", "b", "worse"), ("c", "b", "worse")]


def test_slices_of_users_in_both_alone(runs: list[MeasuredRun]) -> None:
    # c has no user of the tail in common with a: it is no comparison, and does not count as one.
    (tail,) = differences(runs, ["tail/recall@10"], baseline=runs[0])
    assert (tail.run, tail.paired.num_users, tail.paired.difference, tail.p_value) == ("b", 2, 0.5, pytest.approx(SURE))


def test_the_same_every_time_and_as_two_runs_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [write(tmp_path / name, {"recall@10": rng.random(50).tolist()}) for name in ("a", "b", "c")]
    runs = read_runs(paths)
    found = differences(runs, ["recall@10"], baseline=runs[0])
    assert found == differences(runs, ["recall@10"], baseline=runs[0])
    for difference, path in zip(found, paths[1:], strict=True):
        assert [difference.paired] == compare_runs(
            paths[0] / "per_user.parquet", path / "per_user.parquet", metrics=["recall@10"]
        )


def test_without_anything_to_relate_to() -> None:
    difference = Difference("b", "a", Comparison("recall@10", 0.0, 0.1, 0.1, 0.05, 0.15, 0.01, 9), 0.02)
    assert difference.relative is None
    assert difference.verdict == "better"


def test_requested_metrics(runs: list[MeasuredRun]) -> None:
    assert chosen_metrics(runs, ["test/hit@10", "recall@10"]) == ["hit@10", "recall@10"]
    assert chosen_metrics(runs, []) == ["recall@10"]
    with pytest.raises(UserError, match="not every run has 'test/recal@10'.*did you mean 'test/recall@10'"):
        chosen_metrics(runs, ["test/recal@10"])
    assert slice_metrics(runs, "hit@10") == ["tail/recall@10"]
    assert slice_metrics(runs, "hit@20") == []


def test_metrics_that_not_all_have(runs: list[MeasuredRun], tmp_path: Path) -> None:
    more = read_runs([write(tmp_path / "d", {"mrr@5": [0.5] * 4, "ndcg@5": [0.5] * 4})])
    assert chosen_metrics(more, []) == ["mrr@5"]
    with pytest.raises(UserError, match="no metric of each test user in common"):
        chosen_metrics([*runs, *more], [])
