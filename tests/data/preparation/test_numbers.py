"""Mean and deviation of numbers: those of the column, unless a few of them would hide all others."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys.core.schema import Feature
from recsys.data.preparation.column_writers import ColumnWriters, finished
from recsys.data.preparation.feature_drafts import Draft
from recsys.data.shards import ArrayFolder, Shard, Shards

RNG = np.random.default_rng(0)


def written(
    folder: Path, numbers: list[float] | np.ndarray, trained: np.ndarray | None = None
) -> tuple[Feature, np.ndarray]:
    draft = Draft(Feature("price", "items", "numeric", "item", 1), None, 1.0)
    rows = pa.record_batch([pa.array(np.asarray(numbers, np.float64))], names=["price"])
    with ArrayFolder(f"{folder}/items") as arrays:
        ColumnWriters({"price": draft}, arrays).add(rows, np.ones(len(rows), bool) if trained is None else trained)
    shards = Shards(str(folder), tuple(arrays.names), (Shard("items", 0, len(rows)),))
    (feature,), left = finished([draft], shards)
    assert left.columns == ("feature.price",)
    assert [path.name for path in folder.rglob("*.npy")] == ["feature.price.npy"]
    return feature, np.load(folder / "items/feature.price.npy")


@pytest.mark.parametrize(
    "numbers",
    [
        RNG.normal(100, 20, 500),
        RNG.lognormal(3, 2, 2000),
        RNG.exponential(10, 300),
        np.arange(10.0),
        np.repeat([0.0, 1.0], [999, 1]),
        np.repeat([0.0, 1e6], [99, 1]),
        RNG.uniform(0, 1e6, 1000) * (RNG.random(1000) < 0.04),
        10**18 + RNG.integers(0, 10**9, 50),
    ],
    ids=["normal", "lognormal", "exponential", "counted", "rare flag", "rare number", "mostly zero", "huge integers"],
)
def test_usual_columns_have_the_moments_of_all_numbers(
    numbers: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "recsys"):
        feature, encoded = written(tmp_path, numbers)
    mean = float(numbers.astype(np.float64).sum() / len(numbers))
    std = float(np.sqrt(np.square(numbers - mean).sum() / len(numbers)))
    # Equal to the last bit.
    assert (feature.mean, feature.std) == (mean, std)
    assert caplog.records == []
    np.testing.assert_array_equal(encoded, ((numbers - mean) / std).astype(np.float32))


@pytest.mark.parametrize("outlier", [1e300, -1e300, 1.7e308, 1e9])
@pytest.mark.parametrize("size", [10, 1000])
def test_one_number_does_not_hide_the_others(
    outlier: float, size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = RNG.uniform(1, 100, size)
    numbers[size // 2] = outlier
    with caplog.at_level(logging.WARNING, "recsys"):
        feature, encoded = written(tmp_path, numbers)
    others = np.delete(np.arange(size), size // 2)
    assert 25 < feature.mean < 75
    assert 0.8 < encoded[others].std() < 1.3
    assert np.isfinite(encoded).all()
    assert abs(encoded[size // 2]) > 1000
    assert "items.price: " in caplog.text
    assert f"of {size} numbers are far from the others, which lie from " in caplog.text


def test_a_number_for_missing_ones_does_not_hide_the_others(tmp_path: Path) -> None:
    numbers = np.where(RNG.random(1000) < 0.02, 99_999_999.0, RNG.uniform(1, 100, 1000))
    feature, encoded = written(tmp_path, numbers)
    assert 0.8 < encoded[numbers < 1000].std() < 1.3
    assert feature.std < 50


def test_numbers_outside_training_do_not_count_and_stay_finite(tmp_path: Path) -> None:
    feature, encoded = written(tmp_path, [1.0, 3.0, 1e300, np.inf, np.nan], np.array([True, True, False, False, False]))
    assert (feature.mean, feature.std) == (2.0, 1.0)
    np.testing.assert_array_equal(encoded[[0, 1, 3, 4]], [-1.0, 1.0, np.nan, np.nan])
    assert np.isfinite(encoded[2])


@pytest.mark.parametrize("numbers", [[3.0] * 4, [1.7e308, -1.7e308, 1.7e308, -1.7e308], [1e300]])
def test_a_column_without_a_finite_deviation(numbers: list[float], tmp_path: Path) -> None:
    feature, encoded = written(tmp_path, numbers)
    assert np.isfinite(feature.mean)
    assert feature.std == 1.0
    assert np.isfinite(encoded).all()
