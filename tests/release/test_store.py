"""Publishing is all or nothing; aliases move one at a time, and no move is forgotten."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from publishing import Published

from recsys.core.errors import UserError
from recsys.experiments.trained_run import load_run
from recsys.index import Exact
from recsys.publishing.promote import promote
from recsys.release.manifest import Manifest
from recsys.release.store import ReleaseStore

A, B, C = "a" * 16, "b" * 16, "c" * 16


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    """Three folders with names of versions: aliases look no further."""
    for version in (A, B, C):
        (tmp_path / version).mkdir()
    return ReleaseStore(tmp_path)


def _publish_copy(store: ReleaseStore, release: Path) -> str:
    def write(folder: Path) -> Manifest:
        shutil.copytree(release, folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        return Manifest.load(release)

    return store.publish(write)


def test_the_same_content_has_the_same_version(published: Published, tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path)
    release = published.store / published.versions[0]
    assert _publish_copy(store, release) == published.versions[0]
    before = (tmp_path / published.versions[0] / "manifest.json").read_text()
    assert _publish_copy(store, release) == published.versions[0]
    assert (tmp_path / published.versions[0] / "manifest.json").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [published.versions[0]]


@pytest.mark.slow
def test_promoting_a_run_again_gives_the_same_version(published: Published) -> None:
    again = promote(
        load_run(published.runs[0]), Exact(), store=ReleaseStore(published.store), model="test", recall_target=1.0
    )
    assert again.version == published.versions[0]


def test_content_that_is_there_but_damaged_is_not_taken_for_published(published: Published, tmp_path: Path) -> None:
    release = published.store / published.versions[0]
    _publish_copy(ReleaseStore(tmp_path), release)
    (tmp_path / published.versions[0] / "config.yaml").unlink()
    with pytest.raises(UserError, match="config.yaml: missing"):
        _publish_copy(ReleaseStore(tmp_path), release)


def test_a_failed_publish_leaves_nothing(tmp_path: Path) -> None:
    def write(folder: Path) -> Manifest:
        (folder / "user_tower.onnx").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        ReleaseStore(tmp_path).publish(write)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["while writing", "before the rename"])
def test_a_killed_publish_leaves_no_visible_release(published: Published, tmp_path: Path, moment: str) -> None:
    release = published.store / published.versions[0]
    script = f"""
        import os, shutil, signal
        from pathlib import Path
        from recsys.release.manifest import Manifest
        from recsys.release.store import ReleaseStore

        def die(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)

        def write(folder):
            shutil.copytree({str(release)!r}, folder, dirs_exist_ok=True)
            (folder / "manifest.json").unlink()
            if {moment!r} == "while writing":
                (folder / "items.parquet").unlink()
                die()
            os.rename = die
            return Manifest.load(Path({str(release)!r}))

        ReleaseStore({str(tmp_path)!r}).publish(write)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    assert any(path.name.startswith(".tmp-") for path in tmp_path.iterdir())
    store = ReleaseStore(tmp_path)
    assert store.versions() == []
    with pytest.raises(UserError, match="no release"):
        store.resolve(published.versions[0])
    # The next one works, and clears what is left.
    assert _publish_copy(store, release) == published.versions[0]
    assert [path.name for path in tmp_path.iterdir()] == [published.versions[0]]


def test_what_a_living_process_writes_is_not_cleared(published: Published, tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path)
    release = published.store / published.versions[0]
    other = published.store / published.versions[1]

    def write(folder: Path) -> Manifest:
        shutil.copytree(release, folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        # Another publication from beginning to end, while this one is under way.
        assert _publish_copy(ReleaseStore(tmp_path), other) == published.versions[1]
        return Manifest.load(release)

    assert store.publish(write) == published.versions[0]
    assert store.versions() == sorted(published.versions)


def test_aliases_move_and_are_remembered(store: ReleaseStore) -> None:
    store.set_alias("candidate", A, why="first")
    store.set_alias("production", "candidate", why="good")
    store.set_alias("production", B, why="better")
    store.set_alias("production", B, why="nothing changes")
    assert store.aliases() == {"candidate": A, "previous": A, "production": B}
    assert store.resolve("previous") == A
    changes = [(c["alias"], c["from"], c["to"], c["why"]) for c in store.history()]
    assert changes == [
        ("candidate", None, A, "first"),
        ("production", None, A, "good"),
        ("previous", None, A, f"production moved to {B}"),
        ("production", A, B, "better"),
    ]
    assert all(change["when"] for change in store.history())


def test_history_survives_a_line_cut_off(store: ReleaseStore) -> None:
    store.set_alias("candidate", A, why="first")
    with (store.root / "history.jsonl").open("a") as file:
        file.write('{"when": "20')
    store.set_alias("candidate", B, why="second")
    assert [change["to"] for change in store.history()] == [A, B]
    with (store.root / "history.jsonl").open("ab") as file:
        file.write(b'[1]\n{}\n"alias"\n\xff\n' + b"[" * 100_000 + b"\n")
    os.mkfifo(store.root / "aliases/blocking")
    assert [change["to"] for change in store.history()] == [A, B]
    assert "blocking" not in store.aliases()


def test_racing_processes_leave_one_unbroken_history(store: ReleaseStore) -> None:
    script = f"""
        import sys
        from recsys.release.store import ReleaseStore
        store = ReleaseStore({str(store.root)!r})
        for number in range(30):
            store.set_alias("production", [{A!r}, {B!r}, {C!r}][number % 3], why=sys.argv[1])
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    running = [subprocess.Popen([*command, str(number)]) for number in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    for alias in ("production", "previous"):
        changes = [change for change in store.history() if change["alias"] == alias]
        assert [c["from"] for c in changes] == [None, *[c["to"] for c in changes[:-1]]]
        assert store.aliases()[alias] == changes[-1]["to"]
    assert not [path for path in (store.root / "aliases").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("alias", ["", "Candidate", "../x", "a b", ".hidden", A])
def test_names_that_are_no_aliases_are_refused(store: ReleaseStore, alias: str) -> None:
    with pytest.raises(UserError, match="alias: found"):
        store.set_alias(alias, A, why="why")


def test_unknown_releases_are_refused_with_the_nearest_name(store: ReleaseStore) -> None:
    store.set_alias("candidate", A, why="why")
    with pytest.raises(UserError, match="did you mean 'candidate'"):
        store.resolve("candidat")
    with pytest.raises(UserError, match="no release"):
        store.resolve("d" * 16)
    with pytest.raises(UserError, match="no release"):
        store.resolve("../outside")
    with pytest.raises(UserError, match="not a folder"):
        ReleaseStore(store.root / "nowhere").resolve("candidate")
    (store.root / "aliases/candidate").write_text("rubbish")
    with pytest.raises(UserError, match="candidate: damaged"):
        store.resolve("candidate")


def test_history_is_json_lines(store: ReleaseStore) -> None:
    store.set_alias("candidate", A, why="first")
    (line,) = (store.root / "history.jsonl").read_text().splitlines()
    assert set(json.loads(line)) == {"when", "alias", "from", "to", "why"}


def test_a_release_of_another_store_is_adopted_as_it_is(published: Published, tmp_path: Path) -> None:
    version = published.versions[0]
    store = ReleaseStore(tmp_path / "store")
    for _ in range(2):
        assert store.adopt(published.store / version) == version
    folder, manifest = store.open(version)
    assert manifest.files == Manifest.load(published.store / version).files
    assert all(
        (folder / name).read_bytes() == (published.store / version / name).read_bytes() for name in manifest.files
    )
    damaged = tmp_path / version
    shutil.copytree(published.store / version, damaged)
    (damaged / "config.yaml").chmod(0o644)
    (damaged / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match=r"config\.yaml"):
        ReleaseStore(tmp_path / "other").adopt(damaged)
    assert ReleaseStore(tmp_path / "other").versions() == []
