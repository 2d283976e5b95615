"""Runs that are trained at the same time: the result of each alone, and an end for all if one fails."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from omegaconf import DictConfig, OmegaConf
from tiny_run import assert_same_run, command
from told import answer
from worlds import compose

from recsys.core.cores import available_cores
from recsys.core.errors import UnsuitableDataError, UserError
from recsys.core.trust import trust
from recsys.experiments.side_by_side import _check, choose_jobs, train_all
from recsys.experiments.variants import train_best

CONFIG = OmegaConf.create({"name": "a"})


def configurations(run: Path, cache: Path, jobs: int) -> dict[str, DictConfig]:
    words = [word for word in command(run, cache)[1:] if "num_blocks" not in word and "hydra" not in word]
    words += ["trainer.max_epochs=2", f"variant_jobs={jobs}"]
    return {name: compose("train", [*words, f"user_tower={name}"]) for name in ("mean", "attention")}


@pytest.mark.slow
def test_trained_together_they_are_what_they_are_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.experiments.blend_selection.LEAST_GAIN", -1.0)
    cache = tmp_path / "cache"
    runs = [train_best(configurations(tmp_path, cache, jobs), tmp_path / str(jobs), blend=True).path for jobs in (1, 2)]
    assert_same_run(*runs)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (UnsuitableDataError("data.root: found nothing"), UnsuitableDataError, "variant a: data.root: found nothing"),
        ("Traceback: no number", RuntimeError, "variant a:\nTraceback: no number"),
    ],
)
def test_a_failure_names_its_variant(error: object, kind: type[Exception], message: str) -> None:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    theirs.send(error)
    with pytest.raises(kind, match=message):
        _check(ours, cast(BaseProcess, SimpleNamespace(name="a", join=lambda: None)))


def test_a_killed_process_ends_the_others(tmp_path: Path) -> None:
    trust(["polars"])
    configs = {each: OmegaConf.create({"name": each}) for each in ("waits", "is killed")}
    with pytest.raises(UserError, match=r"variant is killed: its process was killed, .*exit code -9.*variant_jobs=1"):
        train_all(answer, configs, tmp_path, what="training", jobs=2)
    pid, threads, packages = (tmp_path / "is killed/seen").read_text().split()
    assert (int(threads), "polars" in packages) == (1, True)
    assert int(pid) != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(pid_in(tmp_path / "waits"), 0)


def pid_in(folder: Path) -> int:
    return int((folder / "seen").read_text().split()[0])


def test_a_script_is_not_run_again_and_its_end_ends_all(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    # As in the README: nothing is guarded by `__main__`.
    script.write_text(
        "from pathlib import Path\nfrom omegaconf import OmegaConf\n"
        "from recsys.experiments.side_by_side import train_all\nfrom told import answer\n"
        f"print('begun', flush=True)\nfolders = Path({str(tmp_path)!r})\n"
        "configs = {each: OmegaConf.create({'name': 'waits'}) for each in ('waits', 'too')}\n"
        "train_all(answer, configs, folders, what='training', jobs=2)\n"
    )
    folders = [tmp_path / name for name in ("waits", "too")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen([sys.executable, str(script)], env=environment, stdout=out, stderr=out)
    try:
        while process.poll() is None and not all((folder / "seen").exists() for folder in folders):
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "out").read_text().splitlines().count("begun") == 1
    for folder in folders:
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(pid_in(folder), 0)
                time.sleep(0.05)


def test_the_number_of_jobs() -> None:
    def jobs(*overrides: str, num_events: int = 1_000_000) -> int:
        return choose_jobs({name: compose("train", list(overrides)) for name in "abc"}, num_events=num_events)

    cores = min(3, available_cores())
    assert jobs() == cores
    assert jobs(num_events=10) == 1
    assert jobs("variant_jobs=2", num_events=10) == 2
    assert jobs("variant_jobs=8") == 3
    assert jobs("trainer=gpu", "variant_jobs=2") == 1
    assert jobs("trainer=ddp", "variant_jobs=2") == 1
    for wrong in ("0", "all", "1.5"):
        with pytest.raises(UserError, match=f"variant_jobs: found .*{wrong}.*, expected auto or a number from 1 on"):
            jobs(f"variant_jobs={wrong}")
