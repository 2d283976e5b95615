"""Records survive: a crash in the middle of one, damage that is told, processes that share a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.core.errors import UserError
from recsys.serving.host import journal as journal_module
from recsys.serving.host.additions import Additions
from recsys.serving.host.item_updates import ItemUpdates
from recsys.serving.host.journal import Journal
from recsys.serving.http.problems import ServerFault


def read(journal: Journal) -> list[dict[str, Any]]:
    return [{name: journal.decode(field) for name, field in record.items()} for record in journal.read_new()]


def test_records_come_back_in_order_and_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "folder/journal")
    assert read(journal) == []
    assert not journal.has_new
    journal.write({"n": 1})
    journal.write({"n": "two\nlines"})
    assert journal.has_new
    assert read(journal) == [{"n": 1}, {"n": "two\nlines"}]
    assert read(journal) == []
    assert not journal.has_new
    assert read(Journal(tmp_path / "folder/journal")) == [{"n": 1}, {"n": "two\nlines"}]


def test_every_torn_tail_is_left_out_and_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path).write({"n": 1})
    whole = path.read_bytes()
    Journal(path).write({"n": 2})
    both = path.read_bytes()
    for size in range(len(whole), len(both)):
        path.write_bytes(both[:size])
        journal = Journal(path)
        assert read(journal) == [{"n": 1}]
        journal.write({"n": 3})
        assert read(journal) == [{"n": 3}]
        assert read(Journal(path)) == [{"n": 1}, {"n": 3}]


def test_damage_is_reported_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for number in range(3):
        Journal(path).write({"n": number})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b":1", b":7") + lines[2])
    with pytest.raises(UserError, match="journal: line 2 is damaged"):
        Journal(path).read_new()


def test_a_record_that_could_not_be_synced_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    Journal(path).write({"n": 1})

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            Journal(path).write({"n": 2})
    Journal(path).write({"n": 3})
    assert read(Journal(path)) == [{"n": 1}, {"n": 3}]


WRITER = """
import sys
from pathlib import Path
from typing import Any
from recsys.serving.host.journal import Journal
journal = Journal(Path(sys.argv[1]))
for number in range(10**6):
    journal.write({"by": sys.argv[2], "n": number})
    print(number, flush=True)
"""


def test_nothing_acknowledged_is_lost_when_writers_are_killed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    acknowledged = {}
    writers = {
        name: subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stdout=subprocess.PIPE, text=True)
        for name in ("a", "b")
    }
    for name, writer in writers.items():
        assert writer.stdout is not None
        last = [writer.stdout.readline() for _ in range(20)]
        writer.send_signal(signal.SIGKILL)
        acknowledged[name] = int((last + writer.stdout.readlines())[-1])
        writer.wait()
    Journal(path).write({"by": "c", "n": 0})
    records = read(Journal(path))
    for name, count in acknowledged.items():
        numbers = [record["n"] for record in records if record["by"] == name]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= count + 1
    assert records[-1] == {"by": "c", "n": 0}


def test_a_large_journal_is_replaced_by_fewer_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "COMPACT_BYTES", 1000)
    path = tmp_path / "journal"
    writer, reader = Journal(path), Journal(path)
    writer.write({"n": -1})
    assert read(reader) == [{"n": -1}]
    for number in range(200):
        writer.write({"n": number}, lambda: [{"all": number}])  # noqa: B023
    assert path.stat().st_size < 5000
    # What the other process had read is replaced, so it reads all again.
    assert reader.has_new
    assert reader.read_new()[0].keys() == {"all"}
    assert read(Journal(path))[-1] == {"n": 199}


@pytest.mark.parametrize("damage", ["emptied", "cut", "gone", "not JSON", "another record"])
def test_a_journal_that_lost_records_rests_its_host_until_it_is_restored(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "journal"
    updates = ItemUpdates(path)
    assert updates.take_down([1, 2]) == 2
    assert updates.take_down([3]) == 1
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage in ("emptied", "cut"):
        os.truncate(path, 0 if damage == "emptied" else whole.index(b"\n") + 1)
    else:
        content = b"not JSON" if damage == "not JSON" else b'{"add": [1]}'
        with path.open("ab") as file:
            file.write(b"%08x %s\n" % (zlib.crc32(content), content))
    for _ in range(2):
        assert updates.fault() is not None
        with pytest.raises(ServerFault) as refused:
            updates.refresh()
        # The path is for the log of the host.
        assert str(path) not in str(refused.value)
        assert refused.value.status == 503
    path.write_bytes(whole)
    assert updates.fault() is None
    assert updates.removed_of([1, 2, 3, 4]) == [1, 2, 3]


def test_a_year_of_changes_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "COMPACT_BYTES", 20_000)

    class Accepts:
        def check_additions(self, additions: Additions) -> list[int | str]:
            return [item["item_id"] for item in additions.items]

    updates = ItemUpdates(tmp_path / "journal")
    rng = np.random.default_rng(0)
    for day in range(60):
        embeddings = rng.normal(size=(10, 8)).astype(np.float32)
        rows = [{"item_id": number} for number in range(10)]
        updates.add(Additions("v1", rows, embeddings), Accepts())
        if day:
            updates.take_down([-day])
    assert (tmp_path / "journal").stat().st_size < 40_000
    again = ItemUpdates(tmp_path / "journal")
    # Most releases of a year are never asked for again: their items are kept as they are written.
    for number in range(20):
        updates.add(Additions(f"old {number}", rows, embeddings), Accepts())
    updates.take_down(["much text" * 20_000])
    again = ItemUpdates(tmp_path / "journal")
    assert not again._added
    assert [len(new) for _, _, new in map(again.of, ("old 3", "none"))] == [10, 0]
    assert [*again._added] == ["old 3"]
    _, removed, new = again.of("v1")
    removed.remove("much text" * 20_000)  # type: ignore[arg-type]  # ids are texts or integers
    assert {*removed} == {*range(-59, 0), *map(str, range(-59, 0))}
    assert [one.item["item_id"] for one in new] == list(range(10))
    np.testing.assert_array_equal(np.stack([one.embedding for one in new]), embeddings)
