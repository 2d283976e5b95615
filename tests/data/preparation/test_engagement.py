"""Which rows are events (`data.engaged`), and what each counts as a target (`data.weight`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from folders import events, histories, prepared, write_folder

from recsys.core.errors import UserError
from recsys.data.batches.targets import TargetSampling, TargetWeights
from recsys.data.dataset import PreparedDataset
from recsys.data.preparation.engagement import Engagement

# Per user: three events that count, and one between them that does not.
ROWS = events([(user, item, item) for user in (1, 2) for item in (1, 2, 3, 4)])
RATING = [5.0, 1.0, 4.0, 4.5, 4.0, float("nan"), 5.0, 5.0]
ACTION = ["save", "hide", "click", "save", "save", None, "click", "save"]
KEPT = {1: ([1], [3], [4]), 2: ([1], [3], [4])}


def read(tmp_path: Path, column: Any, engaged: Any, **settings: Any) -> PreparedDataset:
    root = write_folder(tmp_path / "data", ROWS | {"column": column})
    return prepared(root, engaged=engaged, **settings)


@pytest.mark.parametrize(
    ("column", "engaged"),
    [
        (RATING, {"column": "column", "min": 4}),
        (pa.array([5, 1, 4, 4, 4, None, 5, 5], pa.int8()), {"column": "column", "min": 3.5}),
        (ACTION, {"column": "column", "values": ["save", "click"]}),
        (RATING, {"column": "column", "values": [5, 4, 4.5]}),
        ([1, 0, 2, 1, 1, 0, 2, 1], {"column": "column", "values": [1, 2]}),
        ([True, False, True, True, True, None, True, True], {"column": "column", "values": [True]}),
        ([True, False, True, True, True, False, True, True], {"column": "column", "others": "drop"}),
    ],
)
def test_rows_that_are_events(tmp_path: Path, column: Any, engaged: dict[str, Any]) -> None:
    dataset = read(tmp_path, column, engaged)
    assert histories(dataset) == KEPT
    assert dataset.exposures is None


def test_other_rows_as_exposures(tmp_path: Path) -> None:
    table = {"item_id": [1, 2, 3, 4]}
    root = write_folder(tmp_path / "data", ROWS | {"column": RATING}, items=table)
    dataset = prepared(root, engaged={"column": "column", "min": 4, "others": "exposures"})
    assert histories(dataset) == KEPT
    assert dataset.exposures is not None
    assert dataset.item_ids.take(pa.array(np.asarray(dataset.exposures.item_idx) - 1)).to_pylist() == [2, 2]


def test_a_column_alone_keeps_its_fingerprint() -> None:
    assert Engagement.parse("shown").described() == "shown"  # type: ignore[union-attr]
    assert Engagement.parse({"column": "shown"}) == Engagement.parse("shown")
    assert Engagement.parse({"column": None, "min": None, "values": None, "others": None}) is None


@pytest.mark.parametrize(
    ("column", "engaged", "message"),
    [
        (RATING, {"column": "column", "min": 6}, r"data.engaged.min=6: nobody engaged; the largest value in .* is 5"),
        ([False] * 8, "column", r"data.engaged=column: nobody engaged; the largest value in .* is 0"),
        (
            ACTION,
            {"column": "column", "values": ["sav"]},
            r"values=\[sav\]: no row .* has 'sav'; did you mean 'save'",
        ),
        (ACTION, {"column": "column", "min": 4}, r"holds string there, expected numbers"),
        (ACTION, "column", r"holds string there, expected booleans or integers; .*data.engaged.values=\[VALUE\]"),
        (RATING, "column", r"holds double there, expected booleans or integers; .*data.engaged.min=NUMBER"),
        (RATING, "colum", r"data.engaged=colum: .*no such column; did you mean 'column'"),
        (RATING, {"min": 4}, r"data.engaged.min: expected data.engaged.column as well"),
        (RATING, {"column": "column", "mim": 4}, r"data.engaged.mim: no such key; did you mean 'min'"),
        (RATING, {"column": "column", "min": "four"}, r"data.engaged.min=four: expected a number"),
        (RATING, {"column": "column", "min": 4, "values": [4]}, r"expected one of them"),
        (RATING, {"column": "column", "values": 4}, r"data.engaged.values=4: expected a list, such as .*=\[4\]"),
        (RATING, {"column": "column", "min": 4, "others": "drp"}, r"data.engaged.others=drp: no such option.*'drop'"),
    ],
)
def test_refusals(tmp_path: Path, column: Any, engaged: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, column, engaged)


def test_exposures_need_an_order(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exposures need times.*data.engaged.others=drop leaves them out"):
        read(tmp_path, [1] * 8, "column", time_resolution="none")


@pytest.mark.parametrize("kind", [pa.int64(), pa.float32(), pa.float64(), pa.decimal128(22, 1)])
def test_numeric_weights(tmp_path: Path, kind: pa.DataType) -> None:
    numbers = pa.array([4, 0, 1, 9, 1, 2, 3, 4]).cast(kind)
    dataset = read(tmp_path, numbers, None, weight="column")
    assert dataset.weight is not None
    assert dataset.weight.tolist() == [4, 0, 1, 9, 1, 2, 3, 4]
    # Targets weigh in proportion, with a mean of 1 over the training events.
    weights = TargetWeights(dataset, TargetSampling())(np.array([0, 1, 4]))
    assert weights is not None
    assert weights.tolist() == pytest.approx([4 / 1.75, 0, 1 / 1.75])


def test_weights_of_two_kinds_multiply(tmp_path: Path) -> None:
    features = {"interactions": {"column": {"role": "event", "kind": "categorical"}}}
    dataset = read(tmp_path, [2, 2, 2, 2, 4, 4, 4, 4], None, weight="column", features=features)
    sampling = TargetSampling(action_weights={"column": {"4": 0.5}})
    weights = TargetWeights(dataset, sampling)(np.array([0, 4]))
    assert weights is not None
    assert weights.tolist() == pytest.approx([2 / 3, 2 / 3])


def test_no_training_event_has_a_weight(tmp_path: Path) -> None:
    dataset = read(tmp_path, [0, 0, 0, 1, 0, 0, 0, 1], None, weight="column")
    with pytest.raises(UserError, match="data.weight: the weight of every training event is 0"):
        TargetWeights(dataset, TargetSampling())


def test_equal_weights_stay_none(tmp_path: Path) -> None:
    dataset = read(tmp_path, RATING, None)
    assert dataset.weight is None
    assert TargetWeights(dataset, TargetSampling())(np.array([0, 1])) is None


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1, 2, -3, 4, 5, 6, 7, 8], r"column 'column', row 3: found -3; a weight \(data.weight\) is a finite number"),
        (RATING, r"column 'column', row 6: found nan"),
        ([1.0, float("inf"), *[1.0] * 6], r"row 2: found inf"),
        ([1.0, 1e300, *[1.0] * 6], r"row 2: found 1e\+300"),
        ([1, None, *[1] * 6], r"column 'column' has 1 nulls, expected none"),
        ([0] * 8, r"data.weight=column: every weight in .* is 0"),
        (ACTION, r"data.weight=column: .*holds string there, expected numbers; history.action_weights.column"),
    ],
)
def test_weights_that_are_no_weights(tmp_path: Path, column: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, column, None, weight="column")


def test_rows_that_are_no_events_need_no_weight(tmp_path: Path) -> None:
    dataset = read(tmp_path, [1, 2, 3, 4, -5, 6, 7, 8], {"column": "column", "min": 1}, weight="column")
    assert dataset.weight is not None
    assert sorted(dataset.weight.tolist()) == [1, 2, 3, 4, 6, 7, 8]


def test_a_weight_column_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.weight=colum: .* has no such column; did you mean 'column'"):
        read(tmp_path, RATING, None, weight="colum")
