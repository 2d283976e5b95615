"""A grown source: the earlier data set and the new events give what preparing everything anew gives, file by file."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import events, histories, prepared, write_folder, write_table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.core.columns import Dense, Ragged
from recsys.core.errors import UserError
from recsys.data.dataset import PreparedDataset
from recsys.data.preparation import growth
from recsys.data.preparation.splits import Given, LeaveLastOut, Split, Temporal

FEATURES = {
    "interactions": {
        "action": {"role": "event"},
        "count": {"role": "request"},
        "dwell": {"role": "event"},
        "query": {"role": "request", "kind": "text", "buckets": 16},
        "vector": {"role": "event"},
        "labels": {"role": "event"},
        "numbers": {"role": "request"},
    },
    "users": {"age": {"kind": "numeric"}},
}


def files_of(folder: Path) -> dict[str, Any]:
    """Every file: bytes of arrays and JSON, values of Parquet."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            found[str(path.relative_to(folder))] = (table.schema, table.to_pydict())
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def assert_equal(one: Path, other: Path) -> None:
    found, expected = files_of(one), files_of(other)
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        assert found[name] == content, name


class Calls:
    """Counts how often an earlier data set was of use."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_grown = 0
        grow = growth._grow

        def counted(*arguments: Any) -> Any:
            done = grow(*arguments)
            self.num_grown += 1
            return done

        monkeypatch.setattr(growth, "_grow", counted)


def outcome(root: Path, split: Split, cache: Path, options: dict[str, Any]) -> Path | str:
    """The prepared data set, or why there is none."""
    try:
        return prepared(root, split, cache=cache, **options).path
    except UserError as error:
        return str(error)


def rows_of(rng: np.random.Generator, num_rows: int, worth: str, strings: bool, novelty: int) -> pa.Table:
    """Events of few users and items at few times, so that everything is met twice; later shards know more of them."""
    users, items = rng.integers(0, 3 + 2 * novelty, num_rows), rng.integers(0, 4 + 3 * novelty, num_rows)
    ticks = rng.integers(0, 12, num_rows) + 4 * novelty
    # A quarter of a day and a half of a second a tick: several fall on the same day or in the same second.
    kind = {"integers": pa.int64(), "stamps": pa.timestamp("us"), "dates": pa.date32()}[worth]
    if worth == "integers":
        times = pa.array(ticks * 21_600)
    elif worth == "stamps":
        times = pa.array(ticks * 21_600 * 1_000_000 + rng.integers(0, 3, num_rows) * 500_000).cast(kind)
    else:
        times = pa.array(ticks // 4, pa.int32()).cast(kind)

    def some(values: list[Any], null: float = 0.2) -> list[Any]:
        return [None if rng.random() < null else value for value in values]

    def bags(values: list[Any]) -> list[Any]:
        return some([some(rng.choice(values, rng.integers(0, 4)).tolist(), 0.1) for _ in range(num_rows)])

    return pa.table(
        {
            "user_id": [f"ü{n}" if n % 3 else f"u{n}" for n in users] if strings else users,
            "item_id": [f"i{n}" for n in items] if strings else items,
            "timestamp": times,
            "split": rng.choice(["train", "val", "test"], num_rows, p=[0.6, 0.2, 0.2]),
            "action": pa.array(some(rng.choice(list("abcdef"[: 2 + novelty]), num_rows).tolist()), pa.string()),
            "count": pa.array(some(rng.integers(0, 3 + novelty, num_rows).tolist()), pa.int32()),
            "dwell": pa.array(some(rng.exponential(size=num_rows).tolist()), pa.float64()),
            "query": pa.array(some(rng.choice(["red house", "blue", ""], num_rows).tolist()), pa.string()),
            "vector": pa.array(some(rng.normal(size=(num_rows, 2)).tolist()), pa.list_(pa.float64())),
            "labels": pa.array(bags(list("abcdefgh"[: 3 + novelty])), pa.list_(pa.string())),
            "numbers": pa.array(bags(list(range(3 + 2 * novelty))), pa.list_(pa.int32())),
        }
    )


def listed_of(rng: np.random.Generator, strings: bool, novelty: int) -> dict[str, pa.Table]:
    """Tables of some users and items, others in each state."""
    items, users = rng.permutation(4 + 4 * novelty)[:6], rng.permutation(3 + 3 * novelty)[:5]
    bags = [None if rng.random() < 0.2 else rng.choice(list("xyz"), rng.integers(0, 4)).tolist() for _ in items]
    return {
        "items": pa.table(
            {
                "item_id": [f"i{n}" for n in items] if strings else items,
                "color": rng.choice(["red", "blue", "grey"], len(items)),
                "tags": pa.array(bags, pa.list_(pa.string())),
                "price": rng.normal(size=len(items)),
                "visual": pa.array(rng.normal(size=(len(items), 2)).tolist(), pa.list_(pa.float64())),
            }
        ),
        "users": pa.table(
            {"user_id": [f"ü{n}" if n % 3 else f"u{n}" for n in users] if strings else users, "age": users + 20}
        ),
    }


splits = st.sampled_from([Temporal(0.6, 0.2), Temporal(0.3, 0.3), LeaveLastOut(), Given()])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    split=splits,
    worth=st.sampled_from(["seconds", "day", "order", "none"]),
    kind=st.sampled_from(["integers", "stamps", "dates"]),
    strings=st.booleans(),
    no_val=st.sampled_from(["never", "first", "always"]),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    tables=st.sampled_from(["none", "same", "other"]),
)
def test_grown_is_prepared_anew(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    split: Split,
    worth: str,
    kind: str,
    strings: bool,
    no_val: str,
    sizes: list[int],
    tables: str,
) -> None:
    rng = np.random.default_rng(seed)
    root = tmp_path_factory.mktemp("folder")
    features = FEATURES if tables != "none" else {"interactions": FEATURES["interactions"]}
    options: dict[str, Any] = {"features": features, "time_resolution": worth}
    calls = Calls(monkeypatch)
    try:
        for state, size in enumerate([30, *sizes]):
            shard = rows_of(rng, size, kind, strings, state)
            if no_val == "always" or (no_val == "first" and state == 0):
                names = ["train" if name == "val" else name for name in shard["split"].to_pylist()]
                shard = shard.set_column(3, "split", pa.array(names, pa.string()))
            write_table(root / f"data/interactions.parquet/part-{state}.parquet", shard)
            if tables == "other" or (tables == "same" and state == 0):
                for name, table in listed_of(rng, strings, state).items():
                    write_table(root / f"data/{name}.parquet", table)
            shutil.rmtree(root / "anew", ignore_errors=True)
            anew = outcome(root / "data", split, root / "anew", options)
            num_possible = calls.num_grown + any((root / "cache/prepared").glob("*/kept"))
            grown = outcome(root / "data", split, root / "cache", options)
            if isinstance(anew, str):
                # Small worlds may have a part without events.
                assert "expected some in every part" in anew
                assert grown == anew
            else:
                assert isinstance(grown, Path)
                assert_equal(grown, anew)
                assert calls.num_grown == num_possible
    finally:
        monkeypatch.undo()
        shutil.rmtree(root)


OLD = events([(1, 10, 1), (1, 11, 2), (1, 12, 3), (2, 10, 1), (2, 13, 2), (2, 14, 3)])
NEW = events([(2, 15, 4), (3, 15, 1), (1, 11, 0)])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def append(root: Path, shard: Any, name: str = "part-100") -> None:
    write_table(root / f"interactions.parquet/{name}.parquet", shard)


def test_late_new_and_repeated_events_find_their_place(tmp_path: Path, calls: Calls) -> None:
    root = write_folder(tmp_path / "data", [OLD])
    first = prepared(root)
    assert histories(first) == {1: ([10], [11], [12]), 2: ([10], [13], [14])}
    append(root, NEW)
    grown = prepared(root)
    assert histories(grown) == {1: ([11, 10], [11], [12]), 2: ([10, 13], [14], [15]), 3: ([15], [], [])}
    # Items 10 and 15 with two and one training events, 11 with one, 13 with one; 14 seen in validation, 12 in test.
    assert grown.item_ids.to_pylist() == [10, 11, 13, 15, 14, 12]
    assert calls.num_grown == 1
    # What was there before is as it was.
    assert histories(PreparedDataset.open(first.path)) == {1: ([10], [11], [12]), 2: ([10], [13], [14])}


def test_new_labels_become_known_by_their_frequency(tmp_path: Path, calls: Calls) -> None:
    options: dict[str, Any] = {"features": {"interactions": {"labels": {"role": "event"}, "action": {"role": "event"}}}}
    # In training: a twice, b once. Of user 1, c is a validation event's, d a test event's.
    labels = [["a", "b"], ["c"], ["d", "c"], ["a"], [], ["e"]]
    root = write_folder(tmp_path / "data", [OLD | {"labels": labels, "action": ["x", "y", "z", "x", "x", "w"]}])
    first = prepared(root, **options)
    assert first.vocabulary(first.schema.features[0]).to_pylist() == ["a", "b"]
    # User 1's events become training but for the last two, which are new and bring more values than there were.
    more = events([(1, 10, 7), (1, 11, 8)])
    append(root, more | {"labels": [["f", "g", "h", "i"], ["j", "a"]], "action": ["v", "x"]})
    grown = prepared(root, **options)
    assert calls.num_grown == 1
    assert grown.vocabulary(grown.schema.features[0]).to_pylist() == ["a", "c", "b", "d"]
    assert grown.vocabulary(grown.schema.features[1]).to_pylist() == ["x", "y", "z"]
    column = grown.columns["interactions.labels"]
    assert isinstance(column, Ragged)
    rows = [column.values[a:b].tolist() for a, b in zip(column.offsets[:-1], column.offsets[1:], strict=True)]
    assert rows == [[2, 4], [3], [3, 5], [1], [1, 2], [2], [], [1]]
    actions = grown.columns["interactions.action"]
    assert isinstance(actions, Dense)
    assert actions.values.tolist() == [2, 3, 4, 1, 2, 2, 2, 1]
    assert_equal(grown.path, prepared(root, cache=tmp_path / "anew", **options).path)


def test_other_tables_alone_keep_the_events(tmp_path: Path, calls: Calls) -> None:
    root = write_folder(tmp_path / "data", OLD, items={"item_id": [10, 99], "color": ["red", "blue"]})
    prepared(root)
    write_folder(root, OLD, items={"item_id": [10, 12, 98], "color": ["blue", "red", "red"]})
    grown = prepared(root)
    assert calls.num_grown == 1
    assert 99 not in grown.item_ids.to_pylist()
    assert_equal(grown.path, prepared(root, cache=tmp_path / "anew").path)


def _changed(root: Path) -> None:
    append(root, OLD, "part-000")


def _removed(root: Path) -> None:
    (root / "interactions.parquet/part-000.parquet").unlink()


def _put_before(root: Path) -> None:
    append(root, NEW, "part-000-and-a-half")


@pytest.mark.parametrize("harm", [_changed, _removed, _put_before])
def test_shards_that_did_not_only_grow_are_prepared_anew(tmp_path: Path, calls: Calls, harm: Any) -> None:
    root = write_folder(tmp_path / "data", [NEW, OLD])
    prepared(root)
    harm(root)
    append(root, NEW)
    assert_equal(prepared(root).path, prepared(root, cache=tmp_path / "anew").path)
    assert calls.num_grown == 0


@pytest.mark.parametrize(
    "options", [{"time": "day"}, {"min_user_events": 2}, {"features": {"items": {"color": {"kind": "text"}}}}]
)
def test_other_settings_are_prepared_anew(tmp_path: Path, calls: Calls, options: dict[str, Any]) -> None:
    root = write_folder(tmp_path / "data", [OLD], items={"item_id": [10], "color": ["red"]})
    prepared(root)
    append(root, NEW)
    assert_equal(prepared(root, **options).path, prepared(root, cache=tmp_path / "anew", **options).path)
    assert calls.num_grown == 0


@pytest.mark.parametrize(
    "file", ["events/item_idx.npy", "kept/time.npy", "vocabularies/items.parquet", "kept/feature.dwell.npy"]
)
def test_a_damaged_earlier_data_set_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str) -> None:
    options: dict[str, Any] = {"time": "day", "features": {"interactions": {"dwell": {"role": "event"}}}}
    root = write_folder(tmp_path / "data", [OLD | {"dwell": [1.0] * 6}])
    earlier = prepared(root, **options)
    (earlier.path / file).write_bytes(b"")
    append(root, NEW | {"dwell": [2.0, 3.0, None]})
    with caplog.at_level(logging.INFO, "recsys"):
        grown = prepared(root, **options)
    assert "prepared anew, not from" in caplog.text
    assert_equal(grown.path, prepared(root, cache=tmp_path / "anew", **options).path)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        (NEW | {"item_id": pa.array([15, None, 11])}, "part-100.parquet: column 'item_id' has 1 nulls"),
        (NEW | {"vector": [[1.0]] * 3}, "part-100.parquet: column 'vector' holds vectors of lengths 2, 1"),
    ],
)
def test_what_is_wrong_with_new_events_is_said_as_ever(tmp_path: Path, shard: Any, message: str) -> None:
    features = {"interactions": {"vector": {"role": "event"}}}
    root = write_folder(tmp_path / "data", [OLD | {"vector": [[1.0, 2.0]] * 6}])
    prepared(root, features=features)
    append(root, {"vector": [[1.0, 2.0]] * 3} | shard)
    with pytest.raises(UserError, match=message):
        prepared(root, features=features)


KILLED = """
import os, signal, sys
import recsys.data.preparation.growth as growth
from pathlib import Path
from recsys.data.preparation.prepare import DataSettings, prepare
from recsys.data.sources import ParquetFolder
from recsys.data.preparation.splits import LeaveLastOut
step = getattr(growth, sys.argv[3])
def killed(*arguments):
    step(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(growth, sys.argv[3], killed)
prepare(ParquetFolder(sys.argv[1]), LeaveLastOut(), DataSettings(), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("step", ["bisect", "write_has_features"])
def test_killed_and_started_again_it_goes_on(tmp_path: Path, calls: Calls, step: str) -> None:
    root = write_folder(tmp_path / "data", [OLD])
    first = prepared(root)
    before = files_of(first.path)
    append(root, NEW)
    found = subprocess.run([sys.executable, "-c", KILLED, str(root), str(tmp_path / "cache"), step], check=False)
    assert found.returncode == -signal.SIGKILL
    grown = prepared(root)
    assert calls.num_grown == 1
    assert_equal(grown.path, prepared(root, cache=tmp_path / "anew").path)
    assert files_of(first.path) == before
    kept = {path for path in os.listdir(tmp_path / "cache/prepared") if not path.endswith(".lock")}
    assert kept == {first.path.name, grown.path.name}
