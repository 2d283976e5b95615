from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.core import io
from recsys.core.io import atomic_file, atomic_write, build_folder


def test_content_is_replaced_atomically(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    atomic_write(file, "one")
    atomic_write(file, b"two")
    assert file.read_text() == "two"
    assert os.listdir(tmp_path) == ["state.json"]


def test_text_is_utf8(tmp_path: Path) -> None:
    atomic_write(tmp_path / "name", "Käse")
    assert (tmp_path / "name").read_bytes() == "Käse".encode()


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    file.write_text("old")

    def fail() -> None:
        with atomic_file(file) as aside:
            assert aside.suffix == ".parquet"
            aside.write_text("half")
            raise RuntimeError("half written")

    with pytest.raises(RuntimeError, match="half written"):
        fail()
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.parquet"]


def test_the_file_and_its_folder_are_synced_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(io, "sync", lambda path: calls.append(f"sync {path.name}"))
    monkeypatch.setattr(os, "replace", lambda _, path: calls.append(f"rename to {path.name}"))
    atomic_write(tmp_path / "a.json", "x")
    assert calls == [f"sync .a.{os.getpid()}.part.json", "rename to a.json", f"sync {tmp_path.name}"]


def test_a_folder_is_built_atomically(tmp_path: Path) -> None:
    with build_folder(tmp_path / "made" / "v1") as aside:
        (aside / "inner").mkdir()
        (aside / "inner/file").write_text("x")
        assert not (tmp_path / "made/v1").exists()
    assert (tmp_path / "made/v1/inner/file").read_text() == "x"
    assert os.listdir(tmp_path / "made") == ["v1"]
    assert stat.S_IMODE((tmp_path / "made/v1").stat().st_mode) == stat.S_IMODE(tmp_path.joinpath("made").stat().st_mode)


def test_the_faster_process_wins(tmp_path: Path) -> None:
    with build_folder(tmp_path / "v1") as aside:
        (aside / "file").write_text("slow")
        (tmp_path / "v1").mkdir()
        (tmp_path / "v1/file").write_text("fast")
    assert (tmp_path / "v1/file").read_text() == "fast"
    assert os.listdir(tmp_path) == ["v1"]


def test_an_error_leaves_no_folder(tmp_path: Path) -> None:
    def fail() -> None:
        with build_folder(tmp_path / "v1") as aside:
            (aside / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_killed_writer_leaves_the_old_content(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_text("old")
    script = (
        "import os, signal, sys; from pathlib import Path; from recsys.core.io import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as aside:\n"
        "    aside.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(file)])
    assert killed.returncode == -signal.SIGKILL
    assert file.read_text() == "old"


def test_the_error_of_a_full_disk_names_the_file(tmp_path: Path) -> None:
    def fill() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device: '.*/run.json'"), atomic_file(tmp_path / "run.json"):
        fill()
    with pytest.raises(OSError, match="No space left on device: '.*/data'"), build_folder(tmp_path / "data"):
        fill()
    assert list(tmp_path.iterdir()) == []
