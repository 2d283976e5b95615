"""Exposures: prepared beside the events, and part of the training windows of their time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from folders import histories, prepared, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.core.errors import UserError
from recsys.data.batches.batch import RaggedTensor, Windows
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.loaders import TrainingLoader
from recsys.data.dataset import PreparedDataset
from recsys.data.exposures import Exposures
from recsys.data.preparation.splits import GivenSplit, LeaveLastOutSplit, TemporalSplit

# (user, item, time, engaged); users 3 and 4 never engage, items x and y are never engaged with.
ROWS = [
    ("1", "a", 10, True),
    ("1", "b", 11, False),
    ("1", "x", 12, False),
    ("1", "b", 20, True),
    ("1", "c", 15, False),
    ("1", "c", 15, False),
    ("1", "c", 30, True),
    ("1", "d", 25, False),
    ("1", "d", 40, True),
    ("2", "d", 5, True),
    ("2", "a", 3, False),
    ("2", "a", 50, True),
    ("2", "b", 60, True),
    ("2", "c", 55, False),
    ("3", "a", 7, False),
    ("4", "a", 8, False),
]


def columns(rows: list[tuple[Any, ...]], kind: type = bool) -> dict[str, list[Any]]:
    names = ("user_id", "item_id", "timestamp")
    return {name: [row[number] for row in rows] for number, name in enumerate(names)} | {
        "engaged": [kind(row[3]) for row in rows]
    }


def shown(dataset: PreparedDataset) -> dict[Any, list[tuple[Any, int]]]:
    assert dataset.exposures is not None
    item_idx, time, offsets = dataset.exposures
    return {
        user: [(dataset.item_ids[int(item_idx[at]) - 1].as_py(), int(time[at])) for at in range(begin, end)]
        for user, begin, end in zip(dataset.user_ids.to_pylist(), offsets[:-1], offsets[1:], strict=True)
    }


@pytest.mark.parametrize("kind", [bool, int])
def test_exposures_are_no_events(tmp_path: Path, kind: type) -> None:
    tables: dict[str, Any] = {"items": {"item_id": ["x"]}, "users": {"user_id": ["3"]}}
    with_them = prepared(write_folder(tmp_path / "data", columns(ROWS, kind), **tables), engaged="engaged")
    only_events = [row for row in ROWS if row[3]]
    without = prepared(write_folder(tmp_path / "events", columns(only_events), **tables))
    assert histories(with_them) == histories(without)
    assert with_them.item_ids == without.item_ids
    assert with_them.train_count.tolist() == without.train_count.tolist()
    assert without.exposures is None
    # By time, in the order of the file; of users and items that are known.
    assert shown(with_them) == {
        "1": [("b", 11), ("x", 12), ("c", 15), ("c", 15), ("d", 25)],
        "2": [("a", 3), ("c", 55)],
        "3": [("a", 7)],
    }
    assert shown(PreparedDataset.open(with_them.path)) == shown(with_them)


def test_cuts_are_those_of_the_events(tmp_path: Path) -> None:
    # Shown early and often: with these the cuts would be early too.
    rows = ROWS + [("2", "a", 1, False)] * 50
    with_them = prepared(write_folder(tmp_path / "data", columns(rows)), TemporalSplit(0.5, 0.25), engaged="engaged")
    events = write_folder(tmp_path / "events", columns([row for row in rows if row[3]]))
    assert histories(with_them) == histories(prepared(events, TemporalSplit(0.5, 0.25)))


def test_times_have_the_resolution_of_events(tmp_path: Path) -> None:
    table = columns(ROWS)
    table["timestamp"] = [time * 40_000 for time in table["timestamp"]]
    dataset = prepared(write_folder(tmp_path / "data", table), time_resolution="day", engaged="engaged")
    assert dataset.exposures is not None
    assert {int(time) % 86_400 for time in dataset.exposures.time} == {0}
    stamps = pa.array([time * 1_000_000 for time in columns(ROWS)["timestamp"]], pa.timestamp("us"))
    dataset = prepared(write_folder(tmp_path / "stamps", table | {"timestamp": stamps}), engaged="engaged")
    assert [time for _, time in shown(dataset)["2"]] == [3, 55]


def test_data_without_exposures_keeps_its_name(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", columns(ROWS))
    plain, given_name = prepared(root), prepared(root, engaged="engaged")
    assert plain.path != given_name.path
    assert "engaged" not in plain.meta.settings["settings"]
    assert given_name.meta.settings["settings"]["engaged"] == "engaged"


@pytest.mark.parametrize(
    ("table", "split", "settings", "message"),
    [
        (
            {},
            LeaveLastOutSplit(),
            {"engaged": "engagd"},
            r"data.engaged=engagd: .*no such column.*did you mean 'engaged'",
        ),
        ({}, LeaveLastOutSplit(), {"engaged": "item_id"}, r"data.engaged=item_id: .*no such column"),
        (
            {"engaged": ["yes"] * 16},
            LeaveLastOutSplit(),
            {},
            r"data.engaged=engaged: .*holds string there",
        ),
        ({"engaged": [None] + [True] * 15}, LeaveLastOutSplit(), {}, r"column 'engaged' has 1 nulls, expected none"),
        (
            {"split": ["train", "test"] * 8},
            GivenSplit(),
            {"time_resolution": "none"},
            r"data.engaged=engaged: exposures need times",
        ),
        ({"engaged": [False] * 16}, LeaveLastOutSplit(), {}, "nobody engaged"),
    ],
)
def test_columns_that_cannot_mark_exposures_are_refused(
    tmp_path: Path, table: dict[str, Any], split: Any, settings: dict[str, Any], message: str
) -> None:
    root = write_folder(tmp_path / "data", columns(ROWS) | table)
    with pytest.raises(UserError, match=message):
        prepared(root, split, **{"engaged": "engaged"} | settings)


def brought(batch_exposures: RaggedTensor | None, dataset: PreparedDataset) -> list[list[Any]]:
    assert batch_exposures is not None
    values, offsets = batch_exposures
    names = [dataset.item_ids[int(item) - 1].as_py() for item in values]
    return [sorted(names[a:b]) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


def test_windows_contain_the_exposures_of_their_time(tmp_path: Path) -> None:
    # All of user 1 but the last two events is training: a at 10, b at 20.
    dataset = prepared(write_folder(tmp_path / "data", columns(ROWS)), engaged="engaged")
    first = Windows(np.array([0]), np.array([0]), np.array([1]), np.array([True]))
    batch = BatchBuilder(dataset, 10, max_exposures=10).training(first)
    # Until 20: b (a positive, which the mask knows), and c and x, which are no training items.
    assert [dataset.item_ids[item - 1].as_py() for item in batch.target_idx.tolist()] == ["a", "b"]
    assert brought(batch.exposures, dataset) == [["b"]]
    refit = dataset.refit()
    longer = Windows(np.array([0]), np.array([0]), np.array([2]), np.array([True]))
    assert brought(BatchBuilder(refit, 10, max_exposures=10).training(longer).exposures, refit) == [["b", "c", "d"]]
    # A later window brings what was shown since the event before it.
    last = Windows(np.array([0]), np.array([2]), np.array([2]), np.array([True]))
    assert brought(BatchBuilder(refit, 10, max_exposures=10).training(last).exposures, refit) == [["d"]]
    # The latest of them: d, and c twice, which counts once.
    assert brought(BatchBuilder(refit, 10, max_exposures=3).training(longer).exposures, refit) == [["c", "d"]]
    assert BatchBuilder(refit, 10).training(longer).exposures is None
    assert BatchBuilder(refit, 10, max_exposures=10).requests(refit.requests("test")).exposures is None


moments = st.lists(st.integers(0, 12), max_size=8)
bounds_of_users = st.tuples(moments, st.integers(-1, 12), st.integers(-1, 13))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(moments, st.integers(-1, 12), st.integers(-1, 13)), min_size=1, max_size=5), st.integers(1, 4)
)
def test_between_equals_brute_force(users: list[tuple[list[int], int, int]], most: int) -> None:
    times = [sorted(of_user) for of_user, _, _ in users]
    flat = np.array([time for of_user in times for time in of_user], np.int64)
    items = (np.arange(len(flat)) % 6 + 1).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(of_user) for of_user in times])]).astype(np.int64)
    after, until = (np.array([row[number] for row in users]) for number in (1, 2))
    found = Exposures(items, flat, offsets).between(
        np.arange(len(users)), after=after, until=until, most=most, num_items=4
    )
    for row, (begin, end) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        inside = [int(items[at]) for at in range(begin, end) if after[row] < flat[at] <= until[row]]
        expected = sorted({item for item in inside[-most:] if item <= 4})
        assert found.values[found.offsets[row] : found.offsets[row + 1]].tolist() == expected


def test_an_epoch_contains_every_exposure_of_its_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    items, flags = rng.integers(0, 15, (6, 60)), rng.random((6, 60)) < 0.5
    rows = [
        (str(user), str(items[user, time]), time, bool(flags[user, time])) for user in range(6) for time in range(60)
    ]
    dataset = prepared(write_folder(tmp_path / "data", columns(rows)), engaged="engaged")
    exposures = dataset.exposures
    assert exposures is not None
    loader = TrainingLoader(BatchBuilder(dataset, 5, max_exposures=100), 4, seed=0)
    found: dict[int, set[int]] = {}
    for batch in loader:
        assert batch.exposures is not None
        bounds = zip(batch.exposures.offsets[:-1], batch.exposures.offsets[1:], strict=True)
        for user, (begin, end) in zip(batch.user_idx.tolist(), bounds, strict=True):
            found.setdefault(user, set()).update(batch.exposures.values[begin:end].tolist())
    for user in range(dataset.num_users):
        end = dataset.time[dataset.train_end[user] - 1]
        own = slice(exposures.offsets[user], exposures.offsets[user + 1])
        upto = exposures.item_idx[own][exposures.time[own] <= end]
        assert found[user] == {int(item) for item in upto if item <= dataset.num_trained}
