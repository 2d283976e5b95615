"""New files in a folder are found by content, and a listing does not change when files arrive."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.core.errors import UserError
from recsys.operations.cycle.arrivals import DataFile, FolderListing, find_arrivals, list_folder


def shard(path: str, digest: str, rows: int) -> DataFile:
    return DataFile(path, digest, 10 * rows, rows)


A, B, C = shard("a", "aa", 5), shard("b", "bb", 7), shard("c", "cc", 3)


def test_new_files() -> None:
    found = find_arrivals([A, B, C], [A])
    assert (found.files, found.rewritten, found.missing, found.rows) == (("b", "c"), (), (), 10)
    assert found.has_events
    assert str(found) == "10 new events in 2 files"


def test_no_new_events() -> None:
    for now in ([A, B], [B, A], [A]):
        assert not find_arrivals(now, [A, B]).has_events
    assert find_arrivals([A], [A, B]).missing == ("b",)
    # Another name for what was read; an empty shard.
    assert not find_arrivals([A, shard("renamed", "bb", 7)], [A, B]).has_events
    assert find_arrivals([A, shard("renamed", "bb", 7)], [A, B]).missing == ()
    assert not find_arrivals([A, shard("empty", "00", 0)], [A]).has_events


def test_a_shard_that_was_exported_twice_is_new() -> None:
    assert find_arrivals([A, shard("again", "aa", 5)], [A]).rows == 5


def test_a_rewritten_file() -> None:
    found = find_arrivals([A, shard("b", "b2", 9)], [A, B])
    assert (found.files, found.rewritten, found.missing, found.rows) == (("b",), ("b",), (), 2)
    # Events were taken out of it: nothing is new, and yet it is not what was read.
    fewer = find_arrivals([A, shard("b", "b2", 1)], [A, B])
    assert (fewer.rows, fewer.has_events) == (0, True)
    assert "rewritten since they were read: b" in str(fewer)


def test_a_listing_stays_what_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "interactions.parquet"
    folder.mkdir()
    for name, size in (("one", 3), ("two", 4)):
        pq.write_table(pa.table({"item_id": list(range(size))}), folder / f"{name}.parquet")
    listing = list_folder(str(tmp_path))
    assert [one.rows for one in listing.interactions] == [3, 4]
    assert [one.bytes for one in listing.interactions] == [
        (folder / f"{n}.parquet").stat().st_size for n in ("one", "two")
    ]
    assert listing.paths["items"] == []
    assert msgspec.convert(msgspec.to_builtins(listing), FolderListing) == listing
    pq.write_table(pa.table({"item_id": [1]}), folder / "three.parquet")
    assert listing.changed() == []
    pq.write_table(pa.table({"item_id": [1]}), folder / "two.parquet")
    (folder / "one.parquet").unlink()
    assert listing.changed() == [str(folder / "one.parquet"), str(folder / "two.parquet")]


def test_a_shard_that_is_not_finished_is_named(tmp_path: Path) -> None:
    (tmp_path / "interactions.parquet").mkdir()
    (tmp_path / "interactions.parquet/half.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"half\.parquet: not a readable Parquet file .* expected a finished shard"):
        list_folder(str(tmp_path))
