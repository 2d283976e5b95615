"""A trial in another process bounds time and memory, and survives what ends a process."""

from __future__ import annotations

from pathlib import Path

import pytest
from forging import TINY, copy_release, large, pair_again, seal

from recsys.core.errors import UserError
from recsys.release.trial import try_release
from recsys.serving.host.host import Host
from recsys.serving.host.releases import ReleaseCache, try_once
from recsys.serving.observability.metrics import SHARED_FOLDER


def test_a_sound_release_passes_once_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARED_FOLDER, str(tmp_path))
    try_once(TINY, seconds=300.0, most=None)
    monkeypatch.setattr("recsys.serving.host.releases.try_release", None)
    try_once(TINY, seconds=300.0, most=None)


def test_a_tower_that_takes_memory_is_refused(tmp_path: Path) -> None:
    folder = copy_release(TINY, tmp_path)
    large((1 << 15, 1 << 15))(folder)
    pair_again(folder)
    with pytest.raises(UserError, match="self_check.npz: damaged|memory"):
        try_release(seal(folder), seconds=300.0)


def test_a_trial_without_end_is_killed() -> None:
    with pytest.raises(UserError, match="not opened within 0.01 s"):
        try_release(TINY, seconds=0.01)


def test_a_process_that_crashes_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "false")
    with pytest.raises(UserError, match="ended with status 1"):
        try_release(TINY, seconds=300.0)


def test_a_host_does_not_open_what_failed() -> None:
    def refuse(folder: Path, shard: object) -> None:  # noqa: ARG001
        raise UserError(f"{folder}: refused")

    host = Host(ReleaseCache(TINY.parent, refuse), "host")
    with pytest.raises(UserError, match="refused"):
        host.load("candidate")
    assert not host.version()
