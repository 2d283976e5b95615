"""Bounds of users of another data set, or damaged ones, are refused when a data set is opened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import prepared, write_folder
from sharded import in_shards

from recsys.core.errors import UserError
from recsys.data import user_bounds
from recsys.data.dataset import PreparedDataset
from recsys.data.shards import FILE
from recsys.data.user_bounds import UserBounds

# Three users with the events 0..3, 4..8 and 9..14; each has one event of validation and one of the test part.
OFFSETS, TRAIN_END, VAL_END = [0, 4, 9, 15], [2, 7, 13], [3, 8, 14]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data/users").mkdir(parents=True)
    for name, values in (("offsets", OFFSETS), ("train_end", TRAIN_END), ("val_end", VAL_END)):
        np.save(tmp_path / f"data/users/{name}.npy", np.array(values, np.int64))
    return tmp_path / "data/users"


def load(folder: Path) -> UserBounds:
    return UserBounds.load(folder, num_users=3, num_events=15)


def test_bounds_that_follow_each_other_are_opened(folder: Path) -> None:
    assert [array.tolist() for array in load(folder)] == [OFFSETS, TRAIN_END, VAL_END]
    # A user without events of a part, or without any event.
    np.save(folder / "offsets.npy", np.array([0, 0, 15, 15]))
    for name in ("train_end", "val_end"):
        np.save(folder / f"{name}.npy", np.array([0, 15, 15]))
    load(folder)


@pytest.mark.parametrize(
    ("name", "values", "found", "expected"),
    [
        ("offsets", np.zeros(0, np.int64), r"int64 \[0\]", r"int64 \[4\] for the 3 users of meta.json"),
        ("train_end", np.array([2, 7]), r"int64 \[2\]", r"int64 \[3\] for the 3 users of meta.json"),
        ("val_end", np.array([3, 8, 14, 15]), r"int64 \[4\]", r"int64 \[3\] for"),
        ("val_end", np.array([[3, 8, 14]]), r"int64 \[1, 3\]", r"int64 \[3\] for"),
        ("train_end", np.array([2.0, 7, 13]), r"float64 \[3\]", r"int64 \[3\] for"),
        ("offsets", np.array([1, 4, 9, 15]), r"events 1\.\.15", r"0\.\.15 of meta.json"),
        ("offsets", np.array([0, 4, 9, 16]), r"events 0\.\.16", r"0\.\.15 of meta.json"),
        ("offsets", np.array([0, 9, 4, 15]), r"offsets 9\.\.4, train_end 7, val_end 8 of user_idx 1", "offsets"),
        ("train_end", np.array([2, 3, 13]), r"offsets 4\.\.9, train_end 3, val_end 8 of user_idx 1", "offsets"),
        ("train_end", np.array([2, 7, 16]), r"offsets 9\.\.15, train_end 16, val_end 14 of user_idx 2", "offsets"),
        ("val_end", np.array([1, 8, 14]), r"offsets 0\.\.4, train_end 2, val_end 1 of user_idx 0", "offsets"),
        ("val_end", np.array([3, 8, 16]), r"offsets 9\.\.15, train_end 13, val_end 16 of user_idx 2", "offsets"),
    ],
)
def test_other_bounds_are_refused(folder: Path, name: str, values: Any, found: str, expected: str) -> None:
    np.save(file := folder / f"{name}.npy", values)
    message = rf"{file}: found {found}, expected {expected}.*; delete {folder.parent} and prepare again"
    with pytest.raises(UserError, match=message):
        load(folder)


@pytest.mark.parametrize("name", ["offsets", "train_end", "val_end"])
def test_a_file_that_is_missing_or_damaged_is_named(folder: Path, name: str) -> None:
    file = folder / f"{name}.npy"
    content = file.read_bytes()
    for damaged in (content[:-8], b"", b"text", None):
        file.unlink()
        if damaged is not None:
            file.write_bytes(damaged)
        with pytest.raises(
            UserError, match=rf"{file}: found no array that can be read \(.*\), expected int64 \[[34]\]"
        ):
            load(folder)


def test_many_users_are_checked_in_spread_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_bounds, "_BLOCK", 3)
    monkeypatch.setattr(user_bounds, "_MOST_BLOCKS", 4)
    found: dict[int, list[int]] = {}
    for size in (1, 2, 3, 4, 11, 12, 100):
        bounds = np.arange(size + 1) * 2
        np.save(tmp_path / "offsets.npy", bounds)
        np.save(tmp_path / "train_end.npy", bounds[:-1])
        for user in range(size):
            np.save(tmp_path / "val_end.npy", bounds[:-1] + 3 * (np.arange(size) == user))
            try:
                UserBounds.load(tmp_path, num_users=size, num_events=2 * size)
            except UserError:
                found.setdefault(size, []).append(user)
    assert found.pop(100) == [0, 1, 2, 32, 33, 34, 64, 65, 66, 97, 98, 99]
    assert found == {size: [*range(size)] for size in (1, 2, 3, 4, 11, 12)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    rows = range(60)
    table = {"user_id": [n % 10 for n in rows], "item_id": [n * n % 13 for n in rows], "timestamp": rows}
    root = write_folder(tmp_path_factory.mktemp("bounds") / "data", table | {"engaged": [n % 7 > 0 for n in rows]})
    return prepared(root, engaged="engaged")


@pytest.mark.parametrize("kind", ["events", "exposures"])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"first_user": 4}, r"found row \d+ as the first one of user_idx 4 in the shard 5, expected the rows of users"),
        ({"first_user": 99}, r"found row \d+ as the first one of user_idx 99 in the shard 5"),
        ({"num_rows": 3}, r"found \d+ rows, expected \d+; prepare the data again"),
    ],
)
def test_shards_of_other_users_are_refused(
    whole: PreparedDataset, tmp_path: Path, kind: str, world_size: int, changed: dict[str, int], message: str
) -> None:
    place = in_shards(whole, tmp_path, [0, 5])
    content = json.loads((file := place / kind / FILE).read_text())
    content["shards"][1] |= changed
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"{file}: {message}"):
        PreparedDataset.open(place, world_size=world_size)


@pytest.mark.parametrize("file", ["users/offsets", "users/train_end", "users/val_end", "exposures/offsets"])
def test_a_data_set_with_bounds_of_other_users_does_not_open(whole: PreparedDataset, tmp_path: Path, file: str) -> None:
    shutil.copytree(whole.path, tmp_path, dirs_exist_ok=True)
    np.save(tmp_path / f"{file}.npy", np.zeros(3, np.int64))
    for world_size in (1, 2):
        with pytest.raises(UserError, match=rf"{file}\.npy: found int64 \[3\], expected int64 \[1[01]\] for the 10"):
            PreparedDataset.open(tmp_path, world_size=world_size)
