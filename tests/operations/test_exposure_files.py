"""Impressions without engagement become exposures of a prepared data set."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from folders import prepared, write_folder

from recsys.core.errors import UserError
from recsys.data.dataset import PreparedDataset
from recsys.operations.exposure_files import ExposureSettings, write_exposures
from recsys.serving.impressions import ImpressionStore, open_impressions
from recsys.serving.impressions.impression_store import StoredOutcome
from recsys.serving.impressions.records import SIMILAR, Impression, OpenBatch, encode_batch


@pytest.fixture
def store(tmp_path: Path) -> ImpressionStore:
    """Users 1 and 2 get answers; 1 saves an item of the first answer and clicks on one that is far down."""
    made = OpenBatch(9)
    for at, user, items in (
        (100, "1", ["a", "b", "c", "d"]),
        (200, "1", ["e", "a"]),
        (150, "2", ["a", "e"]),
        (150, None, ["a"]),
    ):
        made.add(Impression(at, user, "v", "m", items))
    made.add(Impression(100, "2", "v", SIMILAR, ["b"]))
    opened = open_impressions(str(tmp_path / "events.sqlite"))
    opened.add(made.name, encode_batch(made.batch), 300)
    opened.add_outcomes(
        [
            StoredOutcome(made.name, 0, "a", "save", 110),
            StoredOutcome(made.name, 0, "a", "click", 105),
            StoredOutcome(made.name, 0, "d", "click", 120),
            StoredOutcome(made.name, 2, "e", "click", 160),
        ]
    )
    return opened


def exposures_of(dataset: PreparedDataset) -> set[tuple[str, str, int]]:
    assert dataset.exposures is not None
    item_idx, time, offsets = dataset.exposures
    return {
        (user, dataset.item_ids[int(item_idx[at]) - 1].as_py(), int(time[at]))
        for user, begin, end in zip(dataset.user_ids.to_pylist(), offsets[:-1], offsets[1:], strict=True)
        for at in range(begin, end)
    }


def rows(out: Path) -> set[tuple[object, ...]]:
    table = pq.read_table(out / "interactions.parquet")
    return {tuple(row.values()) for row in table.select(["user_id", "item_id", "timestamp", "engaged"]).to_pylist()}


def test_exposures_and_outcomes(store: ImpressionStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = write_exposures(store, out, settings=ExposureSettings(top=3))
    assert found == {"exposures": 5, "engagements": 3, "events": 0}
    assert rows(out) == {
        ("1", "a", 105, True), ("1", "b", 100, False), ("1", "c", 100, False), ("1", "d", 120, True),
        ("1", "e", 200, False), ("1", "a", 200, False), ("2", "a", 150, False), ("2", "e", 160, True),
    }  # fmt: skip
    saves = write_exposures(store, tmp_path / "saves", settings=ExposureSettings(actions=["save"], since=120))
    assert saves == {"exposures": 4, "engagements": 0, "events": 0}


def test_exposures_beside_the_events_of_a_folder(store: ImpressionStore, tmp_path: Path) -> None:
    events = {
        "user_id": ["1", "1", "1", "2", "2", "2"],
        "item_id": ["b", "a", "c", "e", "b", "a"],
        "timestamp": [50, 110, 300, 160, 170, 400],
        "price": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    }
    data = write_folder(tmp_path / "data", events, items={"item_id": ["a", "b", "c", "d", "e"]})
    out = tmp_path / "out"
    found = write_exposures(store, out, settings=ExposureSettings(top=2), data=data)
    assert found == {"exposures": 4, "engagements": 0, "events": 6}
    dataset = prepared(out, engaged="engaged")
    assert exposures_of(dataset) == {("1", "b", 100), ("1", "e", 200), ("1", "a", 200), ("2", "a", 150)}


def test_what_does_not_fit_is_refused(store: ImpressionStore, tmp_path: Path) -> None:
    for number, (given, message) in enumerate(
        (
            ({"user_id": [1], "item_id": ["b"], "timestamp": [5]}, "user_id: the impressions do not have the type"),
            ({"user_id": ["1"], "item_id": ["b"]}, "no column timestamp"),
            ({"user_id": ["1"], "item_id": ["b"], "timestamp": [5], "engaged": [True]}, "a column engaged already"),
        )
    ):
        data = write_folder(tmp_path / f"data{number}", given)
        with pytest.raises(UserError, match=message):
            write_exposures(store, tmp_path / "out", settings=ExposureSettings(), data=data)
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="exists"):
        write_exposures(store, tmp_path, settings=ExposureSettings())
    with pytest.raises(UserError, match="none has a user"):
        write_exposures(store, tmp_path / "out", settings=ExposureSettings(since=1000))
