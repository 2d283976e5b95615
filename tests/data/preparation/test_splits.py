"""Splits against a plain reference, on made-up tables and on real data."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import events, histories, prepared, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.core.errors import UserError
from recsys.core.schema import TimeResolution
from recsys.data.preparation.splits import GivenSplit, LeaveLastOutSplit, RandomSplit, Split, TemporalSplit

REAL = Path(os.environ.get("RECSYS_DATA", "/nowhere"))
Parts = dict[Any, tuple[list[Any], list[Any], list[Any]]]


def reference(rows: list[tuple[Any, Any, int, str | None]], split: Split) -> Parts:
    """What each user's parts hold, one event at a time. Rows are (user, item, time, split) in file order."""
    by_user = defaultdict(list)
    for row in rows:
        by_user[row[0]].append(row)
    cuts = [math.inf, math.inf]
    if isinstance(split, TemporalSplit):
        shares = [split.train, split.train + split.val]
        cuts = list(pd.Series([row[2] for row in rows]).quantile(shares))
    has_val = any(row[3] == "val" for row in rows)
    parts: Parts = {}
    for user, mine in by_user.items():
        mine.sort(key=lambda row: row[2])
        train, val, test = [], [], []
        if isinstance(split, TemporalSplit):
            for row in mine:
                (train if row[2] < cuts[0] else val if row[2] < cuts[1] else test).append(row[1])
        elif isinstance(split, LeaveLastOutSplit):
            items = [row[1] for row in mine]
            train, val, test = (items[:-2], items[-2:-1], items[-1:]) if len(items) >= 3 else (items, [], [])
        else:
            for row in mine:
                {"train": train, "val": val, "test": test}[row[3] or ""].append(row[1])
            if not has_val and len(train) >= 2:
                val = [train.pop()]
        parts[user] = (train, val, test)
    return parts


def sizes(parts: Parts) -> list[int]:
    return [sum(len(part[i]) for part in parts.values()) for i in range(3)]


row_of = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(-3, 12), st.sampled_from(["train", "val", "test"]))
split_of = st.one_of(
    st.just(LeaveLastOutSplit()),
    st.just(GivenSplit()),
    st.tuples(st.sampled_from([0.1, 0.25, 0.5, 0.7, 0.8]), st.sampled_from([0.1, 0.15])).map(
        lambda s: TemporalSplit(*s)
    ),
)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(row_of, min_size=1, max_size=30), split=split_of, no_val=st.booleans(), num_shards=st.integers(1, 3)
)
def test_parts_are_those_of_the_reference(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], split: Split, no_val: bool, num_shards: int
) -> None:
    root = tmp_path_factory.mktemp("folder")
    if no_val:
        rows = [(*row[:3], "train" if row[3] == "val" else row[3]) for row in rows]
    num_shards = min(num_shards, len(rows))
    shards = [rows[i * len(rows) // num_shards : (i + 1) * len(rows) // num_shards] for i in range(num_shards)]
    write_folder(root / "data", [events(shard) | {"split": [row[3] for row in shard]} for shard in shards])
    expected = reference(rows, split)
    try:
        if min(sizes(expected)) == 0:
            with pytest.raises(UserError, match="no (training|validation|test) events"):
                prepared(root / "data", split)
        else:
            assert histories(prepared(root / "data", split)) == expected
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("ms", "Europe/Berlin"), pa.date32()])
def test_cuts_of_times_and_dates(tmp_path: Path, kind: pa.DataType) -> None:
    days = [0, 1, 1, 2, 5, 6, 8, 9, 9, 30]
    micros = pa.array([day * 86_400_000_000 for day in days]).cast(pa.timestamp("us"))
    times = micros.cast(kind) if pa.types.is_date(kind) else micros.cast(pa.timestamp(kind.unit)).cast(kind)
    root = write_folder(tmp_path / "data", {"user_id": [1] * 10, "item_id": list(range(10)), "timestamp": times})
    dataset = prepared(root, TemporalSplit(0.5, 0.3))
    # Quantiles .5 and .8 of ten values lie at places 4.5 and 7.2: days 5.5 and 9.
    assert histories(dataset) == {1: ([0, 1, 2, 3, 4], [5, 6], [7, 8, 9])}
    assert dataset.time.tolist() == [day * 86_400 for day in days]


def test_an_event_at_a_cut_is_later(tmp_path: Path) -> None:
    # Eleven events at 0..10: the cuts are 8 and 9 themselves.
    root = write_folder(tmp_path / "data", events([(1, i, i) for i in range(11)]))
    assert histories(prepared(root, TemporalSplit(0.8, 0.1))) == {1: (list(range(8)), [8], [9, 10])}


def test_events_of_equal_time_keep_the_order_of_shards_and_rows(tmp_path: Path) -> None:
    shards = [events([(1, 30, 5), (1, 10, 5)]), events([(1, 20, 5), (1, 5, 4)]), events([(1, 10, 5)])]
    root = write_folder(tmp_path / "data", shards)
    assert histories(prepared(root)) == {1: ([5, 30, 10], [20], [10])}


def test_a_given_split_without_validation_holds_out_the_last_training_event(tmp_path: Path) -> None:
    rows = {
        "user_id": [1, 1, 1, 2, 2],
        "item_id": [3, 4, 5, 3, 4],
        "split": ["train", "train", "test", "train", "test"],
    }
    root = write_folder(tmp_path / "data", rows)
    dataset = prepared(root, GivenSplit())
    assert histories(dataset) == {1: ([3], [4], [5]), 2: ([3], [], [4])}
    assert dataset.meta.time_resolution is TimeResolution.NONE
    assert dataset.time.tolist() == [0] * 5


@pytest.mark.parametrize("shares", [(0.0, 0.1), (0.9, 0.1), (1.2, 0.1), (0.5, -0.1)])
def test_shares_that_leave_a_part_empty_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(UserError, match=r"split.train=.*split.val="):
        TemporalSplit(*shares)


REAL_CASES = [
    ("movielens-100k", "temporal", TemporalSplit()),
    ("movielens-100k", "loo", LeaveLastOutSplit()),
    ("pinterest", "given", GivenSplit()),
    ("amazon-beauty", "loo", LeaveLastOutSplit()),
    ("movielens-1m-positives", "temporal", TemporalSplit()),
]


@pytest.mark.skipif(not REAL.is_dir(), reason="RECSYS_DATA names no folder")
@pytest.mark.parametrize(("name", "protocol", "split"), REAL_CASES)
def test_parts_of_real_data(tmp_path: Path, name: str, protocol: str, split: Split) -> None:
    """Against the independent program beside the data, where it lies there, else against the reference above."""
    dataset = prepared(REAL / name, split, cache=tmp_path / "cache")
    ours = histories(dataset)
    program = REAL.parent / "protocol.py"
    frame = pq.read_table(REAL / name / "interactions.parquet").to_pandas()
    if not program.is_file():
        zeros = np.zeros(len(frame), np.int64)
        columns = [frame["user_id"], frame["item_id"], frame.get("timestamp", zeros), frame.get("split", zeros)]
        assert ours == reference(list(zip(*(list(column) for column in columns), strict=True)), split)
        return
    spec = importlib.util.spec_from_file_location("protocol", program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.split(protocol, REAL / name / "interactions.parquet", tmp_path / "parts")
    for i, part in enumerate(("train", "val", "test")):
        expected = pd.read_parquet(tmp_path / "parts" / f"{part}.parquet")
        if protocol == "given":
            # The program leaves validation to whoever trains: its train is our training and validation.
            mine = {u: p[0] + p[1] if i == 0 else [] if i == 1 else p[2] for u, p in ours.items()}
        else:
            mine = {user: parts[i] for user, parts in ours.items()}
        grouped = expected.groupby("user_id")["item_id"].agg(list).to_dict()
        assert {user: items for user, items in mine.items() if items} == grouped


def test_a_random_split_draws_every_event(tmp_path: Path) -> None:
    """The shares are those asked for, in every shard and for every user, and seeds are independent of each other."""
    num_rows = 4000
    shards = [
        {
            "user_id": [row % 20 for row in range(num_rows)],
            "item_id": list(range(shard * num_rows, (shard + 1) * num_rows)),
        }
        for shard in range(2)
    ]
    parts = []
    for seed in (0, 1):
        dataset = prepared(write_folder(tmp_path / f"data{seed}", shards), RandomSplit(0.7, 0.2, seed))
        assert dataset.meta.time_resolution is TimeResolution.NONE
        part = np.empty(2 * num_rows, int)
        for user in histories(dataset).values():
            for code, of_part in enumerate(user):
                part[of_part] = code
        for rows in (part, part[:num_rows], part[num_rows:], part[0::20], part[7::20]):
            shares = np.bincount(rows, minlength=3) / len(rows)
            assert np.abs(shares - [0.7, 0.2, 0.1]).max() < 4 * np.sqrt(0.25 / len(rows))
        # Neighbouring events, and equal rows of two shards, are independent.
        for one, other in ((part[1:], part[:-1]), (part[num_rows:], part[:num_rows])):
            assert abs(np.corrcoef(one == 0, other == 0)[0, 1]) < 0.06
        parts.append(part)
    assert abs(np.corrcoef(parts[0] == 0, parts[1] == 0)[0, 1]) < 0.06


def test_a_random_split_does_not_change_with_later_shards(tmp_path: Path) -> None:
    shards = [{"user_id": [1, 2] * 50, "item_id": list(range(at, at + 100))} for at in (0, 100)]
    two = histories(prepared(write_folder(tmp_path / "two", shards), RandomSplit()))
    for user, parts in histories(prepared(write_folder(tmp_path / "one", shards[:1]), RandomSplit())).items():
        assert [[item for item in part if item < 100] for part in two[user]] == [list(part) for part in parts]


@pytest.mark.parametrize("settings", [{"train": 1.0}, {"train": 0.9, "val": 0.1}, {"seed": -1}])
def test_settings_of_a_random_split(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="split.(train|seed)="):
        RandomSplit(**settings)
