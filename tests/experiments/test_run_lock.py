"""One process trains in a run folder at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recsys.cli.entry import forget_unused
from recsys.core.errors import UserError
from recsys.experiments.run_lock import LOCK, hold
from recsys.experiments.train import train


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    with (tmp_path / LOCK).open("w") as lock:
        lock.write("process 17 on elsewhere (since 10:00:00)\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = rf"^{tmp_path}: process 17 on elsewhere \(since 10:00:00\) trains in this folder; .* hydra.run.dir$"
        with pytest.raises(UserError, match=message):
            train(OmegaConf.create({"test": True}), tmp_path)
        # Further processes of the same training do not lock.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("recsys.core.distributed.is_first", lambda: False)
            with hold(tmp_path):
                pass
    # The first process is gone, and its file is no lock.
    with hold(tmp_path / "x/.."), hold(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith("process ")


def test_a_folder_can_be_held_again_by_its_own_process(tmp_path: Path) -> None:
    for _ in range(2):
        with hold(tmp_path / "run"), hold(tmp_path / "run"):
            assert (tmp_path / "run" / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    with pytest.raises(RuntimeError, match="within"), hold(tmp_path / "run"):
        raise RuntimeError("within")
    with hold(tmp_path / "run"):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"^hydra\.run\.dir={tmp_path}/file/run: cannot be written \(Not a directory"):
        train(OmegaConf.create({"test": True}), tmp_path / "file/run")


def test_a_refused_start_leaves_the_folder_to_the_process_that_holds_it(tmp_path: Path) -> None:
    run = tmp_path / "runs/first"
    with hold(run):
        # The holder still prepares its data: the folder has nothing but its lock and Hydra's files.
        (run / ".hydra").mkdir()
        forget_unused(run)
        assert (run / LOCK).exists()
        assert (run / ".hydra").exists()
    forget_unused(run)
    assert not (tmp_path / "runs").exists()
