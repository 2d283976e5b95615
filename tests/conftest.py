"""Settings of all tests: one thread, and the same seeds for each."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import EXPORT, FOLDER, export_once
from publishing import published  # noqa: F401

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell, which has its children ignore Ctrl-C: commands under test must not.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# For processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
# Each server would open its release in another process first.
os.environ["RECSYS_TRIAL_SECONDS"] = "null"
# Java compiles small queries longer than it runs them, unless it stops at the first compiler.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
# Each of some hundred processes would compile the package again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# The garbage collector takes a quarter of the time of an export with the default, which visits a million live objects.
gc.set_threshold(50_000, 10, 10)


def pytest_configure() -> None:
    """Keep the folders of tests in memory where there is room: each file that is written safely waits for the disk."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 << 30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))


def pytest_xdist_auto_num_workers() -> int:
    """Return one worker more than there are cores, because many tests wait for processes that they have started."""
    return (os.cpu_count() or 1) + 1


# Files that take half a minute of a processor or more.
LONG = {
    "test_cycle.py", "test_examples.py", "test_extending.py", "test_gates.py", "test_onnx_export.py", "test_train.py",
    "test_web_page.py", "test_wheel.py",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run long files first, then those with most slow tests: the worker with the last file leaves the others idle."""
    slow = Counter(item.path for item in items if {"slow", "spark"} & {mark.name for mark in item.iter_markers()})
    items.sort(key=lambda item: (item.path.name not in LONG, -slow[item.path]))


def pytest_collection_finish() -> None:
    """Keep modules and collected tests out of the garbage collector."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exports"
    folder.mkdir(exist_ok=True)
    os.environ[FOLDER] = str(folder)
    export_once()
    yield
    torch.onnx.export = EXPORT
    del os.environ[FOLDER]


@pytest.fixture(autouse=True)
def _same_every_time() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
