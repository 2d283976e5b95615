"""Settings of all tests: one thread, and the same seeds for each."""

from __future__ import annotations

import os
import signal
from collections import Counter

import numpy as np
import pytest
import torch
from publishing import published  # noqa: F401

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell, which has its children ignore Ctrl-C: commands under test must not.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# For processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"


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


@pytest.fixture(autouse=True)
def _same_every_time() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
