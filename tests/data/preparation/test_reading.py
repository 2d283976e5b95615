"""Shards whose types differ without loss are joined, and sessions with lists become events."""

from __future__ import annotations

import datetime
import decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from folders import EVENTS, histories, prepared, write_folder

from recsys.core.errors import UserError
from recsys.data.preparation.splits import GivenSplit
from recsys.data.sources.common_types import common_type

TEXTS = EVENTS | {"item_id": [f"i{item}" for item in EVENTS["item_id"]]}


@pytest.mark.parametrize(
    ("column", "one", "other"),
    [
        ("user_id", pa.int32(), pa.int64()),
        ("item_id", pa.int64(), pa.uint32()),
        ("timestamp", pa.int32(), pa.uint16()),
        ("timestamp", pa.timestamp("ms"), pa.timestamp("ns")),
        ("timestamp", pa.timestamp("us", "UTC"), pa.timestamp("s", "Europe/Berlin")),
        ("timestamp", pa.date32(), pa.timestamp("s")),
    ],
)
def test_shards_of_types_that_widen(tmp_path: Path, column: str, one: pa.DataType, other: pa.DataType) -> None:
    days = pa.array([datetime.date(2024, 5, day) for day in EVENTS["timestamp"]])
    values = pa.array(EVENTS[column]) if pa.types.is_integer(one) else days.cast(pa.timestamp("s"))

    def of(kind: pa.DataType) -> dict[str, Any]:
        return EVENTS | {column: values.cast(kind)}

    mixed = prepared(write_folder(tmp_path / "mixed", [of(one), of(other), of(one)]))
    plain = prepared(write_folder(tmp_path / "plain", [of(one)] * 3))
    assert histories(mixed) == histories(plain)
    assert mixed.time.tolist() == plain.time.tolist()


def test_texts_with_and_without_dictionary(tmp_path: Path) -> None:
    kinds = [pa.string(), pa.dictionary(pa.int32(), pa.string()), pa.large_string(), pa.string_view()]
    shards = [TEXTS | {"item_id": pa.array(TEXTS["item_id"]).cast(kind)} for kind in kinds]
    assert histories(prepared(write_folder(tmp_path / "data", shards)))[1][0] == ["i10"] * 4 + ["i11"] * 4 + ["i12"] * 2


def test_columns_without_values(tmp_path: Path) -> None:
    items = [
        {"item_id": [13], "tags": pa.nulls(1), "price": pa.array([2.0], pa.float32()), "kind": ["a"]},
        {"item_id": [10], "tags": [["x", "y"]], "price": pa.nulls(1), "kind": pa.nulls(1)},
        {"item_id": [12], "tags": [["x"]], "price": pa.array([4], pa.int32()), "kind": ["a"]},
    ]
    dataset = prepared(write_folder(tmp_path / "data", EVENTS, items=items))
    kinds = {feature.name: feature.kind for feature in dataset.schema.features}
    assert kinds == {"tags": "multi_categorical", "price": "numeric", "kind": "categorical"}
    assert dataset.vocabulary(dataset.schema.features[0]).to_pylist() == ["x", "y"]


def test_an_empty_shard_has_no_types(tmp_path: Path) -> None:
    empty = pa.table({name: pa.array([], pa.string()) for name in EVENTS})
    dataset = prepared(write_folder(tmp_path / "data", [empty, EVENTS]))
    assert histories(dataset) == histories(prepared(write_folder(tmp_path / "plain", EVENTS)))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (pa.uint64(), pa.uint8(), pa.uint64()),
        (pa.uint64(), pa.int64(), None),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.int32(), pa.float32(), pa.float64()),
        (pa.int64(), pa.float64(), None),
        (pa.decimal128(5, 2), pa.decimal128(7, 1), pa.decimal128(8, 2)),
        (pa.decimal128(38, 2), pa.decimal128(38, 4), None),
        (pa.timestamp("us"), pa.timestamp("us", "UTC"), None),
        (pa.list_(pa.int32()), pa.list_(pa.int64()), pa.list_(pa.int64())),
        (pa.list_(pa.int32()), pa.list_(pa.string()), None),
        (pa.string(), pa.int64(), None),
        (pa.bool_(), pa.int8(), None),
        (pa.date32(), pa.date64(), pa.date32()),
    ],
)
def test_common_types(one: pa.DataType, other: pa.DataType, expected: pa.DataType | None) -> None:
    assert common_type(one, other) == expected
    assert common_type(other, one) == expected


def test_the_message_names_the_shard_that_does_not_fit(tmp_path: Path) -> None:
    shards = [EVENTS | {"item_id": pa.array(EVENTS["item_id"], pa.int32())}, EVENTS, TEXTS]
    with pytest.raises(UserError, match=r"part-002.*holds string, but int32 in .*part-000"):
        prepared(write_folder(tmp_path / "data", shards))


def test_decimals(tmp_path: Path) -> None:
    shards = [EVENTS | {"price": pa.array([decimal.Decimal(text)] * 6)} for text in ("1.25", "100.5")]
    features = {"interactions": {"price": {"role": "event"}}}
    dataset = prepared(write_folder(tmp_path / "data", shards), features=features)
    assert (dataset.schema.features[0].mean, dataset.schema.features[0].std) == pytest.approx((50.875, 49.625))


SESSIONS = {
    "user_id": ["a", "b"],
    "item_id": pa.array([[10, 11, 12], [13, 10]], pa.list_(pa.int32())),
    "timestamp": [[5, 6, 7], [1, 2]],
    "split": pa.array([["train", "val", "test"], ["train", "test"]], pa.large_list(pa.string())),
    "shelf": [["x", "y", "x"], ["y", None]],
    "country": ["de", "at"],
}


def test_sessions_with_lists(tmp_path: Path) -> None:
    features = {"interactions": {"shelf": {"role": "event"}, "country": {"role": "request"}}}
    longer = SESSIONS | {"user_id": ["b", "a"], "item_id": [[14, 15, 16], [17, 18]]}
    dataset = prepared(write_folder(tmp_path / "data", [SESSIONS, longer]), GivenSplit(), features=features)
    assert histories(dataset) == {"a": ([17, 10], [11], [18, 12]), "b": ([13, 14], [15], [10, 16])}
    assert dataset.time.tolist() == [1, 5, 6, 2, 7, 1, 5, 6, 2, 7]
    assert [f.kind for f in dataset.schema.features] == ["categorical", "categorical"]
    assert dataset.vocabulary(dataset.schema.features[0]).to_pylist() == ["x", "y"]


def test_times_of_sessions(tmp_path: Path) -> None:
    moments = pa.array([[5, 6, 7], [1, 2]], pa.list_(pa.timestamp("s")))
    days = pa.array([[5, 6, 7], [1, 2]], pa.list_(pa.int32())).cast(pa.list_(pa.date32()))
    for values, scale in ((moments, 1), (days, 86_400)):
        root = write_folder(tmp_path / str(scale), SESSIONS | {"timestamp": values})
        assert prepared(root, GivenSplit()).time.tolist() == [at * scale for at in (5, 6, 7, 1, 2)]


def test_lists_of_one_length(tmp_path: Path) -> None:
    items = pa.array([[10, 11, 12], [12, 10, 13]], pa.list_(pa.int64(), 3))
    root = write_folder(tmp_path / "data", {"user_id": ["a", "b"], "item_id": items, "timestamp": [[1, 2, 3]] * 2})
    assert histories(prepared(root)) == {"a": ([10], [11], [12]), "b": ([12], [10], [13])}


def test_lists_of_other_lengths(tmp_path: Path) -> None:
    bad = SESSIONS | {"timestamp": [[5, 6, 7], [1]]}
    with pytest.raises(UserError, match=r"column 'timestamp' has 1 rows whose list .* as long as the one in 'item_id'"):
        prepared(write_folder(tmp_path / "data", bad), GivenSplit())
