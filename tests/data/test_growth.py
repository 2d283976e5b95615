"""A grown source: the earlier data set and the new events give what preparing everything anew gives, file by file."""

from __future__ import annotations

import json
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
from folders import SMALL, events, histories, prepared, write_folder, write_table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.data import growth
from recsys.data.dataset import PreparedDataset
from recsys.data.prepare import DataSettings, prepare
from recsys.data.sources import ParquetFolder
from recsys.data.splits import Given, LeaveLastOut, Split, Temporal
from recsys.errors import UserError

FEATURES = {
    "interactions": {
        "action": {"role": "event"},
        "count": {"role": "request"},
        "dwell": {"role": "event"},
        "query": {"role": "request", "kind": "text", "buckets": 16},
        "vector": {"role": "event"},
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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    split=splits,
    worth=st.sampled_from(["seconds", "day", "order", "none"]),
    kind=st.sampled_from(["integers", "stamps", "dates"]),
    strings=st.booleans(),
    no_val=st.sampled_from(["never", "first", "always"]),
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=3),
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
    options: dict[str, Any] = {"features": features, "time": worth}
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
            grown = prepared(root / "data", split, cache=root / "cache", **options)
            shutil.rmtree(root / "anew", ignore_errors=True)
            assert_equal(grown.path, prepared(root / "data", split, cache=root / "anew", **options).path)
            assert calls.num_grown == state
    except UserError as error:
        # Small worlds may have a part without events; the message is that of preparing anew.
        assert "expected some in every part" in str(error)
        with pytest.raises(UserError) as anew:
            prepared(root / "data", split, cache=root / "anew", **options)
        assert str(anew.value) == str(error)
    finally:
        monkeypatch.undo()
        shutil.rmtree(root)
