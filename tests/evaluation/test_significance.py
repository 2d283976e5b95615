"""Paired tests on files that are written out, and on differences with a known distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.core.errors import UserError
from recsys.evaluation import significance
from recsys.evaluation.significance import compare_runs, holm, means, paired_bootstrap


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_two_users_have_three_possible_means() -> None:
    # Differences 0 and 1: the mean of two draws is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4. So the interval is
    # [0, 1], and half of twice the p-value is the chance of a mean <= 0.
    [(mean, low, high, p_value)] = paired_bootstrap(np.array([[0.0], [1.0]]), 20_000)
    assert (mean, low, high) == (0.5, 0, 1)
    assert p_value == pytest.approx(2 * 0.25, abs=0.02)


def test_interval_of_many_users_is_the_normal_one() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(0.02, 1.0, (4000, 2)) * (rng.random((4000, 1)) < 0.5)
    for column, (mean, low, high, _) in enumerate(paired_bootstrap(differences)):
        error = differences[:, column].std() / 4000**0.5
        assert mean == pytest.approx(differences[:, column].mean())
        assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.1 * error)


def test_p_values_are_uniform_without_a_difference() -> None:
    rng = np.random.default_rng(0)
    drawn = [p for *_, p in paired_bootstrap(rng.normal(size=(400, 500)), 500)]
    assert np.mean(np.array(drawn) < 0.1) == pytest.approx(0.1, abs=0.05)
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.05)


def test_a_sure_gain_has_the_smallest_p_value() -> None:
    [(_, low, high, p_value)] = paired_bootstrap(np.full((50, 1), 0.1), 999)
    assert (low, high) == pytest.approx((0.1, 0.1))
    assert p_value == pytest.approx(2 / 1000)


def test_equal_runs_are_equal() -> None:
    assert paired_bootstrap(np.zeros((50, 1)), 100) == [(0, 0, 0, 1)]


def test_blocks_are_bounded_and_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(0).normal(size=(30, 1))
    assert paired_bootstrap(differences, 500, seed=1) == paired_bootstrap(differences, 500, seed=1)
    assert paired_bootstrap(differences, 500, seed=1) != paired_bootstrap(differences, 500, seed=2)
    monkeypatch.setattr(significance, "_BLOCK_BYTES", 1)  # one sample a block
    [(mean, low, high, _)] = paired_bootstrap(differences, 4000)
    error = float(differences.std()) / 30**0.5
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.2 * error)


def test_files_are_aligned_on_users(tmp_path: Path) -> None:
    first = write(
        tmp_path / "a.parquet", user_id=["x", "y", "z"], **{"recall@10": [0.0, 0.5, 1.0], "ndcg@10": [1.0] * 3}
    )
    second = write(
        tmp_path / "b.parquet", **{"recall@10": [1.0, 0.25, 0.75], "ndcg@10": [1.0] * 3}, user_id=["z", "x", "y"]
    )
    recall, ndcg = compare_runs(first, second, metrics=["recall@10", "ndcg@10"])
    assert (recall.metric, recall.num_users) == ("recall@10", 3)
    assert (recall.first, recall.second) == pytest.approx((0.5, 2 / 3))
    # Per user .25, .25 and 0.
    assert recall.difference == pytest.approx(1 / 6)
    assert (recall.low, recall.high) == pytest.approx((0, 0.25))
    assert (ndcg.difference, ndcg.low, ndcg.high, ndcg.p_value) == (0, 0, 0, 1)


def test_a_slice_is_compared_over_its_users(tmp_path: Path) -> None:
    nothing = pa.nulls(4, pa.float32())
    first = write(
        tmp_path / "a.parquet",
        user_id=[1, 2, 3, 4],
        **{"recall@10": [0.0, 0.5, 1.0, 1.0], "tail/recall@10": [0.0, None, 0.5, None], "head/recall@10": nothing},
    )
    second = write(
        tmp_path / "b.parquet",
        user_id=[4, 3, 2, 1],
        # Trained on more, it has another tail: the third user's items are not of it.
        **{"recall@10": [1.0, 1.0, 0.5, 0.5], "tail/recall@10": [None, None, 0.25, 1.0], "head/recall@10": nothing},
    )
    recall, tail = compare_runs(first, second, metrics=["recall@10", "tail/recall@10", "head/recall@10"])
    assert (recall.num_users, recall.difference) == (4, 0.125)
    assert (tail.metric, tail.num_users) == ("tail/recall@10", 1)
    assert (tail.first, tail.second, tail.difference) == (0, 1, 1)


def test_means(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet",
        user_id=[1, 2, 3],
        **{"hit@5": [0.0, 1.0, 1.0], "head/recall@5": [None, 0.0, 1.0], "tail/recall@5": pa.nulls(3, pa.float32())},
    )
    hit, head = means(path, ["hit@5", "head/recall@5", "tail/recall@5"])
    assert (hit.metric, hit.num_users, hit.low, hit.high) == ("hit@5", 3, 0, 1)
    assert hit.mean == pytest.approx(2 / 3)
    assert (head.metric, head.num_users, head.mean) == ("head/recall@5", 2, 0.5)


def test_users_that_differ_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a.parquet", user_id=[1, 2, 3], recall=[0.0, 0.0, 0.0])
    for users in ([1, 2], [1, 2, 4], [1, 2, 3, 4]):
        second = write(tmp_path / "b.parquet", user_id=users, recall=[0.0] * len(users))
        common = len({*users} & {1, 2, 3})
        with pytest.raises(
            UserError, match=f"b.parquet: {len(users)} users, {common} of them among the 3 of .*a.parquet"
        ):
            compare_runs(first, second, metrics=["recall"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": [1], "recal": [0.0]}, "no column 'recall'; did you mean 'recal'"),
        ({"recall": [0.0]}, "no column 'user_id'"),
        ({"user_id": [1, 1], "recall": [0.0, 0.0]}, "1 rows repeat a user_id"),
        ({"user_id": [1, 2], "recall": [0.0, None]}, "column 'recall' holds 1 nulls"),
        ({"user_id": ["1"], "recall": [0.0]}, "column 'user_id' is string, expected int64"),
        ({"user_id": [1], "recall": ["high"]}, "column 'recall' is string, expected numbers"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    first = write(tmp_path / "a.parquet", user_id=[1], recall=[0.0])
    with pytest.raises(UserError, match=message):
        compare_runs(first, write(tmp_path / "b.parquet", **columns), metrics=["recall"])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    first = write(tmp_path / "a.parquet", user_id=[1], recall=[0.0])
    (tmp_path / "b.parquet").write_bytes(b"nothing")
    for name in ("b.parquet", "c.parquet"):
        with pytest.raises(UserError, match=f"{name}: not a readable Parquet file"):
            compare_runs(first, tmp_path / name, metrics=["recall"])


def test_no_users() -> None:
    with pytest.raises(UserError, match="no users"):
        paired_bootstrap(np.zeros((0, 1)))


def test_holm() -> None:
    # Sorted .01, .02, .03, .04: times 4, 3, 2, 1 is .04, .06, .06, .04; the last may not fall below .06.
    corrected = holm({"c": 0.03, "a": 0.01, "d": 0.04, "b": 0.02})
    assert corrected == pytest.approx({"c": 0.06, "a": 0.04, "d": 0.06, "b": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1, "b": 1}
    assert holm({}) == {}
