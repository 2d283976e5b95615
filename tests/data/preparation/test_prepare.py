"""The prepared data set: order, features, cache. Hand-computed."""

from __future__ import annotations

import datetime
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from folders import EVENTS, SMALL, events, histories, prepared, write_folder

from recsys.core.columns import Dense, Ragged
from recsys.core.schema import TimeResolution
from recsys.data.dataset import PreparedDataset
from recsys.data.preparation.prepare import plan_preparation, prepare
from recsys.data.preparation.settings import DataSettings
from recsys.data.preparation.splits import GivenSplit, LeaveLastOutSplit, Split, TemporalSplit
from recsys.data.sources import ParquetFolder


def dense(dataset: PreparedDataset, key: str) -> list[Any]:
    column = dataset.columns[key]
    assert isinstance(column, Dense)
    return column.values.tolist()


def ragged(dataset: PreparedDataset, key: str) -> list[list[int]]:
    column = dataset.columns[key]
    assert isinstance(column, Ragged)
    return [column.values[a:b].tolist() for a, b in zip(column.offsets[:-1], column.offsets[1:], strict=True)]


def values(dataset: PreparedDataset, key: str) -> list[Any]:
    feature = next(f for f in dataset.schema.features if f.key == key)
    vocabulary = dataset.vocabulary(feature)
    assert vocabulary is not None
    return vocabulary.to_pylist()


def given(rows: list[tuple[Any, Any, str]], **columns: list[Any]) -> dict[str, list[Any]]:
    return {
        "user_id": [row[0] for row in rows],
        "item_id": [row[1] for row in rows],
        "split": [row[2] for row in rows],
    } | columns


def test_items_lie_in_four_runs(tmp_path: Path) -> None:
    rows = [(1, item, "train") for item in (7, 5, 5, 6)] + [(2, item, "val") for item in (5, 3, 4, 4)]
    rows += [(2, 1, "test"), (2, 9, "test"), (2, 0, "test")]
    root = write_folder(tmp_path / "data", given(rows), items={"item_id": [9, 8, 5, 2]})
    dataset = prepared(root, GivenSplit())
    #                                 trained  val-seen  table only  test only
    assert dataset.item_ids.to_pylist() == [5, 6, 7, 4, 3, 2, 8, 9, 0, 1]
    meta = dataset.meta
    assert (meta.num_trained, meta.num_seen, meta.num_known, meta.num_items) == (3, 5, 8, 10)
    assert dataset.train_count.tolist() == [0, 2, 1, 1] + [0] * 7
    assert dataset.refit().train_count.tolist() == [0, 3, 1, 1, 2, 1] + [0] * 5
    assert dataset.corpus(reads_features=False).tolist() == [1, 2, 3]
    assert not dataset.has_features.any()


def test_users_are_those_of_events_and_of_their_table(tmp_path: Path) -> None:
    rows = events([("é", "x", 1), ("é", "y", 2), ("é", "x", 3), ("z", "x", 1), ("Z", "y", 1)])
    root = write_folder(tmp_path / "data", rows, users={"user_id": ["a", "z"]})
    dataset = prepared(root)
    # By bytes of UTF-8: capitals before small letters, accents last.
    assert dataset.user_ids.to_pylist() == ["Z", "a", "z", "é"]
    assert histories(dataset) == {
        "Z": (["y"], [], []),
        "a": ([], [], []),
        "z": (["x"], [], []),
        "é": (["x"], ["y"], ["x"]),
    }
    assert dataset.schema.user_id_type == dataset.schema.item_id_type == "string"
    assert dataset.item_idx.dtype == np.int32
    assert dataset.offsets.tolist() == [0, 1, 1, 2, 5]


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint16(), pa.uint64()])
def test_narrow_ids_widen(tmp_path: Path, kind: pa.DataType) -> None:
    narrow = {name: pa.array(EVENTS[name], kind) for name in ("user_id", "item_id")}
    dataset = prepared(write_folder(tmp_path / "data", EVENTS | narrow, items={"item_id": [10, 99]}))
    assert dataset.item_ids.type == dataset.user_ids.type == pa.int64()


def test_strings_of_any_representation(tmp_path: Path) -> None:
    ids = pa.array([str(item) for item in EVENTS["item_id"]])
    shards = [EVENTS | {"item_id": ids.dictionary_encode()}, EVENTS | {"item_id": ids.cast(pa.large_string())}]
    dataset = prepared(write_folder(tmp_path / "data", shards, items={"item_id": ["10"], "a": ["x"]}))
    assert dataset.item_ids.type == pa.string()
    assert dataset.meta.num_events == 12


@pytest.mark.parametrize(
    ("time_resolution", "expected"),
    [("seconds", [-1, 86_399, 86_400]), ("day", [-86_400, 0, 86_400]), ("none", [0, 0, 0])],
)
def test_times_have_the_resolution_of_the_configuration(
    tmp_path: Path, time_resolution: str, expected: list[int]
) -> None:
    start = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    moments = [start + datetime.timedelta(seconds=s) for s in (-0.5, 86_399.75, 86_400)]
    rows = {"user_id": [1] * 3, "item_id": [1, 2, 3], "timestamp": pa.array(moments, pa.timestamp("us", "UTC"))}
    dataset = prepared(write_folder(tmp_path / "data", rows), time_resolution=time_resolution)
    assert dataset.time.tolist() == expected
    assert dataset.meta.time_resolution == time_resolution
    assert histories(dataset) == {1: ([1], [2], [3])}


def test_order_keeps_the_raw_integers(tmp_path: Path) -> None:
    dataset = prepared(
        write_folder(tmp_path / "data", events([(1, 1, 0), (1, 2, 100_001), (1, 3, 7)])), time_resolution="order"
    )
    assert dataset.time.tolist() == [0, 7, 100_001]


def test_nanoseconds_and_dates(tmp_path: Path) -> None:
    stamps = pa.array([1_700_000_000_999_999_999] * 3, pa.timestamp("ns"))
    rows = {"user_id": [1] * 3, "item_id": [1, 2, 3], "timestamp": stamps}
    assert prepared(write_folder(tmp_path / "a", rows)).time.tolist() == [1_700_000_000] * 3
    rows["timestamp"] = pa.array([1, 2, -1], pa.int32()).cast(pa.date32())
    assert prepared(write_folder(tmp_path / "b", rows)).time.tolist() == [-86_400, 86_400, 2 * 86_400]


def test_features_of_items(tmp_path: Path) -> None:
    # Items 10 (twice) and 11 are trained; 12 is seen in validation; 13 in test; 14 in the table alone.
    rows = events([(1, 10, 1), (1, 11, 2), (1, 12, 3), (1, 13, 4), (2, 10, 1)])
    items = {
        "item_id": [10, 11, 12, 14],
        "color": ["red", "blue", "green", None],
        "year": pa.array([1999, 1999, 2000, None], pa.int16()),
        "flag": [True, None, False, None],
        "tags": [["b", "a", "b"], ["a", None], ["new"], []],
        "price": [1.0, 3.0, 5.0, None],
        "look": pa.array([[1, 2], [3, 4], None, None], pa.list_(pa.float32(), 2)),
        "title": ["Red shoes", "Blue", "", None],
        "made": pa.array([1, 2, 3, None], pa.int32()).cast(pa.date32()),
        "nested": [{"a": 1}] * 4,
    }
    features = {"items": {"title": {"kind": "text", "buckets": 50}, "flag": {"ignore": False}}}
    dataset = prepared(write_folder(tmp_path / "data", rows, items=items), features=features)
    assert dataset.item_ids.to_pylist() == [10, 11, 12, 14, 13]
    assert [f.name for f in dataset.schema.features] == ["color", "year", "flag", "tags", "price", "look", "title"]
    assert values(dataset, "items.color") == ["blue", "red"]
    #                                    unknown  10 11 12 14 13
    assert dense(dataset, "items.color") == [0, 3, 2, 1, 0, 0]
    assert values(dataset, "items.year") == [1999]
    assert dense(dataset, "items.year") == [0, 2, 2, 1, 0, 0]
    assert dense(dataset, "items.flag") == [0, 2, 0, 1, 0, 0]
    assert values(dataset, "items.tags") == ["a", "b"]
    assert ragged(dataset, "items.tags") == [[], [2, 3], [2], [1], [], []]
    np.testing.assert_array_equal(dense(dataset, "items.price"), [np.nan, -1, 1, 3, np.nan, np.nan])
    price = dataset.schema.features[4]
    assert (price.mean, price.std, price.size) == (2.0, 1.0, 1)
    look = dataset.columns["items.look"]
    assert isinstance(look, Dense)
    assert look.values[1:3].tolist() == [[1, 2], [3, 4]]
    assert np.isnan(look.values[[0, 3, 4, 5]]).all()
    assert dataset.schema.features[6].size == 52
    assert [len(words) for words in ragged(dataset, "items.title")] == [0, 2, 1, 0, 0, 0]
    assert dataset.has_features.tolist() == [False, True, True, True, False, False]
    assert dataset.corpus(reads_features=True).tolist() == [1, 2, 3]


def test_features_of_users_and_of_events(tmp_path: Path) -> None:
    rows = events([(1, 10, 4), (1, 11, 3), (1, 12, 2), (1, 13, 1), (3, 10, 5)]) | {
        "rating": [1.0, 2.0, 4.0, 8.0, None],
        "action": ["buy", "save", "save", "click", "click"],
        "query": ["red shoes", None, "shoes", "", "blue"],
        "unused": [object.__name__] * 5,
    }
    users = {"user_id": [3, 1, 2], "age": [30, 40, 50]}
    features = {
        "interactions": {
            "rating": {"role": "event"},
            "action": {"role": "event"},
            "query": {"kind": "text", "role": "request"},
        }
    }
    dataset = prepared(write_folder(tmp_path / "data", rows, users=users), features=features)
    keys = [f.key for f in dataset.schema.features]
    assert keys == ["interactions.rating", "interactions.action", "interactions.query", "users.age"]
    assert [f.role for f in dataset.schema.features] == ["event", "event", "request", "profile"]
    # User 1: events by time, 8 and 4 are training; user 3: one training event without a rating.
    np.testing.assert_array_equal(dense(dataset, "interactions.rating"), [1, -1, -2, -2.5, np.nan])
    assert values(dataset, "interactions.action") == ["click", "save"]
    assert dense(dataset, "interactions.action") == [2, 3, 3, 1, 2]
    words = ragged(dataset, "interactions.query")
    assert [len(w) for w in words] == [0, 1, 0, 2, 1]
    assert words[1][0] == words[3][1]
    # User 2 has no events: a known age, in no vocabulary.
    assert dense(dataset, "users.age") == [3, 1, 2]
    assert values(dataset, "users.age") == [30, 40]


def test_a_constant_number_and_one_that_training_never_sees(tmp_path: Path) -> None:
    items = {"item_id": [10, 13, 12], "same": [0.1, 0.1, 0.3], "late": [None, None, 7.0]}
    dataset = prepared(write_folder(tmp_path / "data", EVENTS, items=items))
    same, late = dataset.schema.features
    assert (same.std, late.mean, late.std) == (1.0, 0.0, 1.0)


def test_declared_kinds_and_times_as_numbers(tmp_path: Path) -> None:
    made = pa.array([0, 86_400], pa.int64()).cast(pa.timestamp("s"))
    items = {"item_id": [10, 13], "made": made, "year": [1, 3], "code": [[1, 2], [3, 4]]}
    features = {"items": {"made": {"kind": "numeric"}, "year": {"kind": "numeric"}, "code": {"kind": "vector"}}}
    dataset = prepared(write_folder(tmp_path / "data", EVENTS, items=items), LeaveLastOutSplit(), features=features)
    made_feature = dataset.schema.features[0]
    assert made_feature.kind == "numeric"
    assert (made_feature.mean, made_feature.std) == (0.0, 1.0)
    assert dense(dataset, "items.made")[1:3] == [0.0, 86_400.0] or dense(dataset, "items.made").count(86_400.0) == 1
    assert dataset.schema.features[2].size == 2


def test_columns_that_are_no_features_are_left_out_with_a_notice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    many = list(range(200))
    items = {
        "item_id": many,
        "title": [f"Title {i}" for i in many],
        "brand": [f"brand {i % 20}" for i in many],
        "number": many,
        "made": pa.array(many, pa.int32()).cast(pa.date32()),
        "nothing": pa.nulls(200),
    }
    with caplog.at_level(logging.INFO, "recsys"):
        dataset = prepared(write_folder(tmp_path / "data", EVENTS, items=items))
    assert [f.name for f in dataset.schema.features] == ["brand", "number"]
    for name in ("title", "made", "nothing"):
        assert f"column '{name}'" in caplog.text
    caplog.clear()
    # Each variant of a recipe opens the data.
    with caplog.at_level(logging.INFO, "recsys"):
        prepared(tmp_path / "data")
    assert "left out" not in caplog.text
    kept = prepared(
        tmp_path / "data", features={"items": {"title": {"kind": "categorical"}, "number": {"ignore": True}}}
    )
    assert [f.name for f in kept.schema.features] == ["title", "brand"]


def test_small_tables_lose_titles_too(tmp_path: Path) -> None:
    items = {"item_id": list(range(10)), "title": [f"t{i}" for i in range(10)], "brand": ["a", "b"] * 5}
    dataset = prepared(write_folder(tmp_path / "data", EVENTS, items=items))
    assert [f.name for f in dataset.schema.features] == ["brand"]


def test_a_table_of_other_ids_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = {name: [str(value) for value in EVENTS[name]] for name in ("user_id", "item_id")}
    items = {"item_id": ["010", "011"], "brand": ["a", "a"]}
    prepared(write_folder(tmp_path / "data", EVENTS | texts, items=items, users={"user_id": ["1", "7"]}))
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "items.parquet: column 'item_id' holds none of the ids of" in message
    assert message.endswith("interactions.parquet: '10' there, '010' here; no event has features of items")


def test_the_core_is_a_fixed_point(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Item 9 goes (once); then user 4 has one event left and goes; then item 8 has one event left and goes.
    rows = [(u, i, t) for u in (1, 2, 3) for t, i in enumerate((1, 2, 3))]
    rows += [(4, 9, 1), (4, 8, 2), (1, 8, 9)]
    root = write_folder(tmp_path / "data", events(rows))
    with caplog.at_level(logging.INFO, "recsys"):
        dataset = prepared(root, min_user_events=2, min_item_events=2)
    assert histories(dataset) == {u: ([1], [2], [3]) for u in (1, 2, 3)}
    assert "9 of 12 events remain" in caplog.text


def test_cuts_are_those_of_all_events_even_if_some_are_removed(tmp_path: Path) -> None:
    rows = [(1, 1, t) for t in range(5)] + [(2, 2, t) for t in (50, 60, 70, 80, 90, 100)] + [(1, 1, 75), (1, 1, 95)]
    rows += [(i, 3, 0) for i in range(10, 20)]
    dataset = prepared(write_folder(tmp_path / "data", events(rows)), TemporalSplit(0.8, 0.1), min_user_events=2)
    # 23 times: ten zeros, 0..4, 50, 60, 70, 75, 80, 90, 95, 100. Places 17.6 and 19.8: 70 + .6 * 5 and 80 + .8 * 10.
    assert histories(dataset) == {1: ([1] * 5, [1], [1]), 2: ([2] * 3, [2], [2] * 2)}


def test_renamed_columns(tmp_path: Path) -> None:
    rows = {"reviewer": [1] * 3, "asin": ["a", "b", "c"], "when": [3, 2, 1]}
    root = write_folder(tmp_path / "data", rows, items={"asin": ["a"], "x": [1]}, users={"user_id": [1], "y": [1]})
    dataset = prepared(root, columns={"user_id": "reviewer", "item_id": "asin", "timestamp": "when"})
    assert histories(dataset) == {1: (["c"], ["b"], ["a"])}
    assert [f.key for f in dataset.schema.features] == ["items.x", "users.y"]


def test_names_that_clash_with_our_own(tmp_path: Path) -> None:
    names = ["time", "part", "shard", "row", "user_idx", "idx", "train", "filename", "select", 'a"b', "a.b", "a b"]
    items = {"item_id": [10, 13]} | {name: [1, 2] for name in names}
    rows = EVENTS | {name: [1] * 6 for name in names}
    features = {"interactions": {name: {"role": "event"} for name in names}}
    dataset = prepared(write_folder(tmp_path / "data", rows, items=items), features=features)
    assert len(dataset.schema.features) == 2 * len(names)
    assert all(len(column) for column in dataset.columns.values())


def test_a_remote_folder_gives_the_same_arrays(tmp_path: Path) -> None:
    items = {"item_id": [10, 11], "tags": [["a"], ["b", "a"]]}
    local = prepared(write_folder(tmp_path / "data", [EVENTS, EVENTS], items=items))
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "data"), "/bucket/data", recursive=True)
    remote = prepare(
        ParquetFolder("memory://bucket/data"),
        LeaveLastOutSplit(),
        settings=DataSettings(),
        cache=tmp_path / "cache",
        engine=SMALL,
    )
    memory.rm("/bucket", recursive=True)
    assert histories(remote) == histories(local)
    assert ragged(remote, "items.tags") == ragged(local, "items.tags")


@pytest.mark.parametrize(
    ("split", "plain", "with_settings"),
    [
        (TemporalSplit(0.5, 0.25), "47a354e334dfad3754c6f3d7707bf76e", "9de4217914ce9e92ad58db6f4646c93a"),
        (LeaveLastOutSplit(), "576d569501150558213e210bfad58683", "c716e24f2acfafe3d02e8811482e2874"),
        (GivenSplit(), "f62521cf6a93d1d9fb2892ffd229910b", "20270a89e57deec9e577624602fc4039"),
    ],
)
def test_fingerprints_are_those_of_earlier_versions(
    split: Split, plain: str, with_settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run checks the fingerprint of its data, so another name would keep runs that exist from opening."""
    # The bytes of a Parquet file depend on the version of its writer.
    monkeypatch.setattr("recsys.data.preparation.prepare.digest", lambda _: "digest")
    table = EVENTS | {"split": ["train", "val", "test"] * 2}
    source = ParquetFolder(str(write_folder(tmp_path, table, items={"item_id": [10, 11], "color": ["a", "b"]})))
    settings = DataSettings(
        time_resolution=TimeResolution.DAY, features={"items": {"color": {"kind": "text"}}}, min_user_events=2
    )
    found = [plan_preparation(source, split, settings=s, cache=tmp_path) for s in (DataSettings(), settings)]
    assert [job.fingerprint for job in found] == [plain, with_settings]


def test_the_fingerprint_follows_content_and_settings_not_place(tmp_path: Path) -> None:
    one = prepared(write_folder(tmp_path / "a/data", EVENTS), cache=tmp_path / "cache")
    stamp = (one.path / "meta.json").stat().st_mtime_ns
    again = prepared(write_folder(tmp_path / "b/elsewhere", EVENTS), cache=tmp_path / "cache", features={"items": {}})
    assert again.path == one.path
    assert (again.path / "meta.json").stat().st_mtime_ns == stamp
    others = [
        prepared(tmp_path / "a/data", cache=tmp_path / "cache", time_resolution="day"),
        prepared(tmp_path / "a/data", TemporalSplit(0.5, 0.2), cache=tmp_path / "cache"),
        prepared(write_folder(tmp_path / "c", [EVENTS, EVENTS]), cache=tmp_path / "cache"),
    ]
    assert len({dataset.path for dataset in [one, *others]}) == 4
    assert one.path.name == one.meta.fingerprint


KILLED = """
import os, signal, sys
import recsys.data.preparation.pipeline as steps
from pathlib import Path
from recsys.data.preparation.prepare import plan_preparation, prepare
from recsys.data.preparation.settings import DataSettings
from recsys.data.sources import ParquetFolder
from recsys.data.preparation.splits import LeaveLastOutSplit
step = getattr(steps, sys.argv[3])
def killed(*arguments, **named):
    step(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(steps, sys.argv[3], killed)
prepare(ParquetFolder(sys.argv[1]), LeaveLastOutSplit(), settings=DataSettings(), cache=Path(sys.argv[2]))
"""


@pytest.mark.parametrize("step", ["write_users", "write_shards"])
def test_leftovers_of_a_killed_run_are_never_used(tmp_path: Path, step: str) -> None:
    root = write_folder(tmp_path / "data", EVENTS, items={"item_id": [10, 11], "color": ["a", "b"]})
    found = subprocess.run([sys.executable, "-c", KILLED, str(root), str(tmp_path / "cache"), step], check=False)
    assert found.returncode == -signal.SIGKILL
    left = [path for path in os.listdir(tmp_path / "cache/prepared") if not path.endswith(".lock")]
    assert len(left) == 1
    assert left[0].endswith(".part")
    dataset = prepared(root)
    assert histories(dataset) == {1: ([10], [11], [12]), 2: ([10], [13], [14])}
    kept = [path for path in os.listdir(tmp_path / "cache/prepared") if not path.endswith(".lock")]
    assert kept == [dataset.path.name]
    assert not list(dataset.path.glob("scratch"))


def _prepare(root: str, cache: str, barrier: Any, results: Any) -> None:
    barrier.wait()
    dataset = prepare(
        ParquetFolder(root), LeaveLastOutSplit(), settings=DataSettings(), cache=Path(cache), engine=SMALL
    )
    results.put((str(dataset.path), (dataset.path / "meta.json").stat().st_mtime_ns))


def test_two_at_once_build_once(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", EVENTS)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (str(root), str(tmp_path / "cache"), barrier, results)
    workers = [context.Process(target=_prepare, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = {results.get(timeout=120) for _ in workers}
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(found) == 1


def test_a_failed_preparation_leaves_no_folder(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", EVENTS, items={"item_id": [10, 10]})
    with pytest.raises(ValueError, match="in 2 rows"):
        prepared(root)
    assert [path for path in os.listdir(tmp_path / "cache/prepared") if not path.endswith(".lock")] == []
