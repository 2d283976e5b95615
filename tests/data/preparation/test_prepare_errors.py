"""Every mistake in a source or its settings is an error that names the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from folders import EVENTS, events, prepared, write_folder

from recsys.core.errors import UserError
from recsys.data.preparation.engines import DuckDB
from recsys.data.preparation.settings import DataSettings
from recsys.data.preparation.splits import GivenSplit, LeaveLastOutSplit, Split, TemporalSplit


def fails(root: Path, message: str, split: Split | None = None, **settings: Any) -> None:
    with pytest.raises(UserError, match=message):
        prepared(root, split, **settings)


def renamed(old: str, new: str) -> dict[str, Any]:
    return {new if name == old else name: column for name, column in EVENTS.items()}


def test_no_folder(tmp_path: Path) -> None:
    fails(tmp_path / "nowhere", "nowhere: no such folder; expected one with interactions.parquet")


def test_a_file_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    fails(tmp_path / "data", "data: found a file, expected a folder")


def test_no_interactions(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    fails(tmp_path / "data", "no interactions.parquet; found nothing")
    (tmp_path / "data/interaction.parquet").write_text("")
    fails(tmp_path / "data", "no interactions.parquet; found interaction.parquet")


def test_a_folder_without_shards(tmp_path: Path) -> None:
    (tmp_path / "data/interactions.parquet").mkdir(parents=True)
    (tmp_path / "data/interactions.parquet/_SUCCESS").write_text("")
    fails(tmp_path / "data", "interactions.parquet: a folder without shards")


def test_an_unknown_protocol(tmp_path: Path) -> None:
    del tmp_path
    fails(Path("nope:") / "x", "no such folder")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"user_id,item_id\n1,2\n"])
def test_an_unreadable_file(tmp_path: Path, content: bytes) -> None:
    root = write_folder(tmp_path / "data", [EVENTS, EVENTS])
    (root / "interactions.parquet/part-001.parquet").write_bytes(content)
    fails(root, r"part-001\.parquet: not a readable Parquet file")


def test_a_truncated_file(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", EVENTS)
    file = root / "interactions.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    fails(root, r"interactions\.parquet: not a readable Parquet file")


def test_damaged_pages(tmp_path: Path) -> None:
    # The footer is whole, so only reading finds the damage.
    many = {name: list(range(10_000)) for name in EVENTS}
    root = write_folder(tmp_path / "data", many)
    file = root / "interactions.parquet"
    content = bytearray(file.read_bytes())
    content[4:400] = b"\xff" * 396
    file.write_bytes(content)
    fails(root, "the data cannot be read")


def test_no_rows(tmp_path: Path) -> None:
    none = pa.table({name: pa.array([], pa.int64()) for name in EVENTS})
    fails(write_folder(tmp_path / "a", none), r"interactions\.parquet: no rows")
    fails(write_folder(tmp_path / "b", [none, none]), "part-000.parquet: no rows, nor in 1 other shards")
    # One empty shard among others is normal.
    assert prepared(write_folder(tmp_path / "c", [none, EVENTS])).meta.num_events == 6


@pytest.mark.parametrize("name", ["user_id", "item_id", "timestamp"])
def test_a_missing_column(tmp_path: Path, name: str) -> None:
    root = write_folder(tmp_path / "data", renamed(name, name.replace("_", "")[:-1] + "x"))
    fails(root, rf"interactions\.parquet: column '{name}' is missing; did you mean '")


def test_a_missing_split(tmp_path: Path) -> None:
    fails(
        write_folder(tmp_path / "data", EVENTS),
        "column 'split' is missing; valid: .*split=given needs it",
        GivenSplit(),
    )


def test_missing_ids_of_other_tables(tmp_path: Path) -> None:
    fails(write_folder(tmp_path / "a", EVENTS, items={"id": [1]}), r"items\.parquet: column 'item_id' is missing")
    fails(write_folder(tmp_path / "b", EVENTS, users={"id": [1]}), r"users\.parquet: column 'user_id' is missing")


@pytest.mark.parametrize("name", ["user_id", "item_id", "timestamp"])
def test_nulls(tmp_path: Path, name: str) -> None:
    holes = EVENTS | {name: pa.array([1, None, None, 1, 1, 1], pa.int64())}
    fails(write_folder(tmp_path / "data", [EVENTS, holes]), rf"part-001\.parquet: column '{name}' has 2 nulls")


def test_nulls_of_other_tables(tmp_path: Path) -> None:
    keys = pa.array([1, None], pa.int64())
    fails(write_folder(tmp_path / "a", EVENTS, items={"item_id": keys}), r"items\.parquet: column 'item_id' has 1 null")
    fails(write_folder(tmp_path / "b", EVENTS, users={"user_id": keys}), r"users\.parquet: column 'user_id' has 1 null")


@pytest.mark.parametrize("name", ["user_id", "item_id"])
@pytest.mark.parametrize("values", [[1.0] * 6, [True] * 6, [[1.0]] * 6])
def test_ids_of_other_types(tmp_path: Path, name: str, values: list[Any]) -> None:
    root = write_folder(tmp_path / "data", EVENTS | {name: values})
    fails(root, rf"interactions\.parquet: column '{name}' holds .*, expected integers or strings")


def test_ids_of_two_types(tmp_path: Path) -> None:
    text = {"item_id": ["10"]}
    fails(
        write_folder(tmp_path / "a", EVENTS, items=text),
        r"items\.parquet: column 'item_id' holds string, but .*interactions\.parquet holds int64 in 'item_id'",
    )
    fails(
        write_folder(tmp_path / "b", EVENTS | {"user_id": list("abcdef")}, users={"user_id": [1]}),
        r"users\.parquet: column 'user_id' holds int64, but .* holds string",
    )


def test_an_id_beyond_64_bits(tmp_path: Path) -> None:
    ids = pa.array([2**64 - 1] * 6, pa.uint64())
    message = r"interactions\.parquet: column 'item_id' holds 18446744073709551615, expected integers below 2\^63"
    fails(write_folder(tmp_path / "data", EVENTS | {"item_id": ids}), message)


def test_duplicates(tmp_path: Path) -> None:
    fails(
        write_folder(tmp_path / "a", EVENTS, items={"item_id": [10, 11, 11]}),
        r"items\.parquet: column 'item_id' has 11 in 2 rows",
    )
    fails(
        write_folder(tmp_path / "b", EVENTS, users=[{"user_id": [1]}, {"user_id": [1]}]),
        r"users\.parquet: column 'user_id' has 1 in 2 rows",
    )


def test_shards_of_different_types(tmp_path: Path) -> None:
    other = EVENTS | {"item_id": [str(item) for item in EVENTS["item_id"]]}
    fails(
        write_folder(tmp_path / "a", [EVENTS, other]),
        r"part-001\.parquet: column 'item_id' holds string, but int64 in .*part-000\.parquet",
    )
    fails(
        write_folder(tmp_path / "b", [EVENTS, renamed("timestamp", "time")]),
        r"part-001\.parquet: column 'timestamp' is missing, but .*part-000\.parquet has it",
    )
    items = [{"item_id": [1], "x": [1]}, {"item_id": [2], "x": ["a"]}]
    fails(write_folder(tmp_path / "c", EVENTS, items=items), r"part-001\.parquet: column 'x' holds string")
    # What nothing reads may differ.
    prepared(write_folder(tmp_path / "d", [EVENTS | {"note": [1] * 6}, EVENTS]))


def test_vectors_of_different_lengths(tmp_path: Path) -> None:
    items = [{"item_id": [10, 11], "look": [[1.0, 2.0], None]}, {"item_id": [12, 13], "look": [[1.0, 2.0], [3.0]]}]
    fails(
        write_folder(tmp_path / "a", EVENTS, items=items),
        r"part-001\.parquet: column 'look' holds vectors of lengths 2, 1; expected one length",
    )
    items = {"item_id": [10, 11], "look": pa.array([[], []], pa.list_(pa.float32()))}
    fails(write_folder(tmp_path / "b", EVENTS, items=items), "column 'look' holds vectors of length 0")


def test_values_of_the_given_split(tmp_path: Path) -> None:
    parts = ["train", "training", None, "val", "test", "holdout"]
    root = write_folder(tmp_path / "data", EVENTS | {"split": parts})
    fails(root, "column 'split' .*found .*'holdout', 'training'.*expected train, val or test", GivenSplit())
    fails(root, "found .*null", GivenSplit())
    fails(write_folder(tmp_path / "b", EVENTS | {"split": [1] * 6}), "column 'split' holds int64", GivenSplit())


def test_parts_without_events(tmp_path: Path) -> None:
    short = events([(1, 1, 1), (1, 2, 2), (2, 1, 1)])
    fails(write_folder(tmp_path / "a", short), r"LeaveLastOutSplit\(\) leaves no validation events \(3 training, 0 val")
    same = events([(1, i, 7) for i in range(9)])
    fails(
        write_folder(tmp_path / "b", same),
        r"TemporalSplit\(.*\) leaves no training .*also work if many events have one time",
        TemporalSplit(),
    )
    fails(
        write_folder(tmp_path / "c", EVENTS | {"split": ["train"] * 6}),
        r"GivenSplit\(\) leaves no test events",
        GivenSplit(),
    )


def test_a_core_without_events(tmp_path: Path) -> None:
    fails(
        write_folder(tmp_path / "data", EVENTS),
        "no events remain with data.min_user_events=10, data.min_item_events=0",
        min_user_events=10,
    )


ITEMS = {"item_id": [10, 11], "color": ["a", "b"], "price": [1.0, 2.0], "look": [[1.0], [2.0]], "tags": [["a"], ["b"]]}


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"item": {}}, r"data\.features\.item: no such key; did you mean 'items'"),
        ({"users": {"age": {}}}, r"data\.features\.users\.age: the source has no users\.parquet"),
        (
            {"items": {"color": "text"}},
            r"expected settings of the feature. Type data\.features\.items\.color\.kind=text",
        ),
        ({"items": "color"}, r"data\.features\.items=color: expected \{column"),
        ({"items": {"colour": {}}}, r"data\.features\.items\.colour: .*items\.parquet has no such column.*'color'"),
        ({"items": {"item_id": {}}}, r"data\.features\.items\.item_id: .*an id"),
        ({"interactions": {"timestamp": {}}}, r"data\.features\.interactions\.timestamp"),
        ({"items": {"color": {"kinds": "text"}}}, r"data\.features\.items\.color\.kinds: no such key.*'kind'"),
        ({"items": {"color": {"kind": "category"}}}, r"kind=category: no such kind; did you mean 'categorical'"),
        ({"items": {"color": {"kind": "numeric"}}}, r"color\.kind=numeric: .* holds string there, expected numbers"),
        ({"items": {"color": {"kind": "vector"}}}, r"expected lists of numbers"),
        ({"items": {"price": {"kind": "categorical"}}}, r"expected strings, integers or booleans"),
        ({"items": {"price": {"kind": "text"}}}, r"expected strings"),
        ({"items": {"tags": {"kind": "vector"}}}, r"expected lists of numbers"),
        ({"items": {"look": {"kind": "multi_categorical"}}}, r"expected lists of strings or integers"),
        ({"items": {"color": {"role": "event"}}}, r"color\.role=event: columns of items have the role item"),
        ({"items": {"color": {"kind": "text", "buckets": 0}}}, r"color\.buckets=0: expected a positive integer"),
        ({"interactions": {"note": {}}}, r"note\.role=None: expected event .* or request"),
        ({"interactions": {"note": {"role": "profile"}}}, r"note\.role=profile: expected event"),
        ({"interactions": {"notes": {"role": "event"}}}, r"interactions\.notes: .*did you mean 'note'"),
    ],
)
def test_declarations_that_do_not_fit(tmp_path: Path, features: dict[str, Any], message: str) -> None:
    root = write_folder(tmp_path / "data", EVENTS | {"note": ["x"] * 6}, items=ITEMS)
    fails(root, message, features=features)


def test_settings_that_do_not_exist(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", EVENTS)
    fails(root, r"data\.columns\.userid: no such key; did you mean 'user_id'", columns={"userid": "x"})
    with pytest.raises(UserError, match=r"data\.time=second: .*did you mean 'seconds'"):
        DataSettings(time_resolution="second")  # type: ignore[arg-type]


def test_settings_of_the_engine(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", EVENTS)
    with pytest.raises(UserError, match=r"data\.engine: "):
        prepared(root, LeaveLastOutSplit(), DuckDB(memory="plenty"))
