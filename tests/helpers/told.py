"""A step of training that does what its folder's name says. Imports no torch: each new process would wait for it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from omegaconf import DictConfig

from recsys.core.io import atomic_write
from recsys.core.trust import trusted
from recsys.experiments.run_folder import RunFolder


def answer(config: DictConfig, path: Path) -> RunFolder:
    path.mkdir(exist_ok=True)
    atomic_write(path / "seen", f"{os.getpid()} {os.environ['OMP_NUM_THREADS']} {','.join(trusted())}")
    while config.name != "waits" and not (path.parent / "waits/seen").exists():
        time.sleep(0.05)
    if config.name == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.name == "waits":
        time.sleep(600)
    return RunFolder(path, config)
