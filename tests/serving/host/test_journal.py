"""Records survive: a crash in the middle of one, damage that is told, processes that share a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.core.errors import UserError
from recsys.serving.host.journal import Journal


def test_records_come_back_in_order_and_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "folder/journal")
    assert journal.read_new() == []
    assert not journal.has_new
    journal.write({"n": 1})
    journal.write({"n": "two\nlines"})
    assert journal.has_new
    assert journal.read_new() == [{"n": 1}, {"n": "two\nlines"}]
    assert journal.read_new() == []
    assert not journal.has_new
    assert Journal(tmp_path / "folder/journal").read_new() == [{"n": 1}, {"n": "two\nlines"}]


def test_every_torn_tail_is_left_out_and_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path).write({"n": 1})
    whole = path.read_bytes()
    Journal(path).write({"n": 2})
    both = path.read_bytes()
    for size in range(len(whole), len(both)):
        path.write_bytes(both[:size])
        journal = Journal(path)
        assert journal.read_new() == [{"n": 1}]
        journal.write({"n": 3})
        assert journal.read_new() == [{"n": 3}]
        assert Journal(path).read_new() == [{"n": 1}, {"n": 3}]


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
    assert Journal(path).read_new() == [{"n": 1}, {"n": 3}]


WRITER = """
import sys
from pathlib import Path
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
    records = Journal(path).read_new()
    for name, count in acknowledged.items():
        numbers = [record["n"] for record in records if record["by"] == name]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= count + 1
    assert records[-1] == {"by": "c", "n": 0}
