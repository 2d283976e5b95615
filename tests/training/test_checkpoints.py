"""Checkpoints on a full disk."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from recsys.training.checkpoints import AtomicCheckpointIO


def test_a_full_disk_is_named_and_the_checkpoint_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoints/last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def full(_: Any, file: Path) -> NoReturn:
        file.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 272768 vs 272656")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(
        OSError, match="no space left for the checkpoint; free some and type the same command"
    ) as raised:
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(path))
    assert torch.load(path) == {"step": 1}
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_other_errors_of_torch_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> NoReturn:
        raise RuntimeError("a bug")

    monkeypatch.setattr("torch.save", wrong)
    with pytest.raises(RuntimeError, match="a bug"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")
