"""The scripts of deploy/launching start the command that they name. JobSet is in the tests of Kubernetes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from recsys.experiments.compose import check_overrides

FOLDER = Path(__file__).parents[2] / "deploy/launching"


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("torchrun", ["--nnodes", "2", "--nproc-per-node", "4", "--rdzv-endpoint", "10.0.0.1:29500"]),
        ("slurm", ["--kill-on-bad-exit=1"]),
    ],
)
def test_scripts(script: str, options: list[str], tmp_path: Path) -> None:
    launcher = tmp_path / {"slurm": "srun"}.get(script, script)
    launcher.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    launcher.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NODES": "2", "MAIN": "10.0.0.1", "PROCESSES": "4"}
    words = ["data=parquet", "data.root=a folder", "hydra.run.dir=runs/first"]
    found = subprocess.run(
        [FOLDER / f"{script}.sh", *words], env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()
    at = found.index("train")
    assert found[at - 1] in ("recsys", "recsys.cli")
    assert found[at + 2 :] == words
    check_overrides("train", found[at + 1 :])
    assert {*options} <= {*found[:at]}
