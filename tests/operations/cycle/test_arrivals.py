"""What is new in a folder is told by content, and what a cycle reads stays what it was."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.core.errors import UserError
from recsys.operations.cycle.arrivals import Listing, Shard, compare, list_folder


def shard(path: str, digest: str, rows: int) -> Shard:
    return Shard(path, digest, 10 * rows, rows)


A, B, C = shard("a", "aa", 5), shard("b", "bb", 7), shard("c", "cc", 3)


def test_new_files() -> None:
    found = compare([A, B, C], [A])
    assert (found.files, found.rewritten, found.gone, found.rows) == (("b", "c"), (), (), 10)
    assert found.are_there
    assert str(found) == "10 new events in 2 files"


def test_nothing_new() -> None:
    for now in ([A, B], [B, A], [A]):
        assert not compare(now, [A, B]).are_there
    assert compare([A], [A, B]).gone == ("b",)
    # Another name for what was read; an empty shard.
    assert not compare([A, shard("renamed", "bb", 7)], [A, B]).are_there
    assert compare([A, shard("renamed", "bb", 7)], [A, B]).gone == ()
    assert not compare([A, shard("empty", "00", 0)], [A]).are_there


def test_a_shard_that_was_exported_twice_is_new() -> None:
    assert compare([A, shard("again", "aa", 5)], [A]).rows == 5


def test_a_rewritten_file() -> None:
    found = compare([A, shard("b", "b2", 9)], [A, B])
    assert (found.files, found.rewritten, found.gone, found.rows) == (("b",), ("b",), (), 2)
    # Events were taken out of it: nothing is new, and yet it is not what was read.
    fewer = compare([A, shard("b", "b2", 1)], [A, B])
    assert (fewer.rows, fewer.are_there) == (0, True)
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
    assert Listing.from_json(listing.to_json()) == listing
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
