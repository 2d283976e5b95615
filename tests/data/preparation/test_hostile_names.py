"""Paths and names of columns are read literally, whatever they mean to an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import EVENTS, SMALL, events, histories, prepared, write_folder

from recsys.core.errors import UserError
from recsys.data.preparation.prepare import prepare
from recsys.data.preparation.settings import DataSettings
from recsys.data.preparation.splits import LeaveLastOutSplit
from recsys.data.sources import ParquetFolder

HISTORIES = {1: ([10], [11], [12]), 2: ([10], [13], [14])}
OTHERS = events([(9, item, item) for item in (90, 91, 92)])


@pytest.mark.parametrize("name", ["week[1]", "week?", "*", "a=b, c%20d", "{ü}#$~:\\", 'it\'s "x"'])
def test_paths_are_no_patterns(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path / "week1", OTHERS)
    root = write_folder(tmp_path / name, EVENTS, items={"item_id": [10]})
    assert histories(prepared(root, cache=tmp_path / name / "cache")) == HISTORIES
    assert [feature.key for feature in prepared(root, cache=tmp_path / "cache").schema.features] == []


def test_addresses_are_no_patterns() -> None:
    memory = fsspec.filesystem("memory")
    for folder, table in (("week1", OTHERS), ("week[1]", EVENTS)):
        with memory.open(f"/hostile/{folder}/interactions.parquet", "wb") as opened:
            pq.write_table(pa.table(table), opened)
    source = ParquetFolder("memory://hostile/week[1]")
    assert source.tables(Path()).interactions == ("memory:///hostile/week[1]/interactions.parquet",)


def test_an_address_that_is_a_pattern_is_read_literally(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for folder, table in (("w1", OTHERS), ("w[1]", EVENTS)):
        with memory.open(f"/odd/{folder}/interactions.parquet", "wb") as opened:
            pq.write_table(pa.table(table), opened)
    dataset = prepare(
        ParquetFolder("memory://odd/w[1]"), LeaveLastOutSplit(), settings=DataSettings(), cache=tmp_path, engine=SMALL
    )
    assert histories(dataset) == HISTORIES


def table(*columns: tuple[str, Any]) -> pa.Table:
    return pa.table([pa.array(values) for _, values in columns], names=[name for name, _ in columns])


def test_names_of_the_engine_change_nothing(tmp_path: Path) -> None:
    ties = events([(1, item, 5) for item in range(6)])
    own = {"file_row_number": [6, 5, 4, 3, 2, 1], "file_index": ["x"] * 6, "filename": ["y"] * 6, "": [1] * 6}
    assert histories(prepared(write_folder(tmp_path / "data", ties | own))) == {1: ([0, 1, 2, 3], [4], [5])}


def test_names_that_differ_in_case_are_read_as_they_are(tmp_path: Path) -> None:
    rest = [(name, EVENTS[name]) for name in ("item_id", "timestamp")]
    shards = [
        table(("Id", [0] * 6), ("ID", EVENTS["user_id"]), *rest),
        table(*rest, ("ID", [3] * 6), ("id", [0] * 6)),
    ]
    dataset = prepared(write_folder(tmp_path / "data", shards), columns={"user_id": "ID"})
    assert histories(dataset).keys() == {1, 2, 3}
    assert {user: histories(dataset)[user] for user in (1, 2)} == HISTORIES


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (table(("item_id", [10]), ("Genre", ["a"]), ("genre", ["b"])), r"'Genre' and 'genre' differ only in case"),
        (table(("item_id", [10]), ("x", ["a"]), ("x", ["b"])), r"2 columns have the name 'x'"),
        (table(("item_id", [10]), ("ITEM_ID", [11])), r"'item_id' and 'ITEM_ID' differ only in case"),
        (table(("item_id", [10]), ("x", pa.array([2**63], pa.uint64()))), r"column 'x' holds 9223372036854775808"),
        (table(("item_id", [10]), ("x", pa.array([[2**63]], pa.list_(pa.uint64())))), r"holds 9223372036854775808"),
    ],
)
def test_columns_that_could_be_confused(tmp_path: Path, items: pa.Table, message: str) -> None:
    root = write_folder(tmp_path / "data", EVENTS, items=items)
    with pytest.raises(UserError, match=r"items\.parquet: .*" + message):
        prepared(root)
    # A column that nothing reads may have any name.
    left_out = {name: {"ignore": True} for name in items.column_names if name not in ("item_id", "Genre")}
    assert histories(prepared(root, features={"items": left_out})) == HISTORIES


def test_features_with_names_of_other_languages_and_marks(tmp_path: Path) -> None:
    names = ["g.h", 'x"y', "it's`", "rowid", "Größe (cm)", "ü" * 70, "a b", "${x}", "SELECT", "user_id:token"]
    items = table(("item_id", [10, 11]), ("g", pa.array([{"h": 1.5}] * 2)), *((name, [0.5, 1.5]) for name in names))
    dataset = prepared(write_folder(tmp_path / "data", EVENTS, items=items))
    assert [feature.name for feature in dataset.schema.features] == names
    long = "x" * 151
    root = write_folder(tmp_path / "b", EVENTS, items={"item_id": [10], long: [1.5]})
    with pytest.raises(UserError, match="nor more than 150 bytes"):
        prepared(root, features={"items": {long: {"kind": "numeric"}}})
