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
import yaml
from exports import FOLDER, ORIGINAL, export_once
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
# The parser in C: half of the tests compose configurations.
yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[misc]
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


# Seconds of the longest files, with three workers on two cores. Only their order matters.
LONG = {
    "publishing/test_onnx_export.py": 85, "serving/test_milvus.py": 75, "experiments/test_train.py": 72,
    "gates/test_gates.py": 70, "cycle/test_cycle.py": 60, "experiments/test_variants.py": 54,
    "sweep/test_runner.py": 45, "experiments/test_side_by_side.py": 45, "examples/test_examples.py": 41,
    "preparation/test_engines.py": 40, "deployment/test_wheel.py": 40, "cycle/test_real_servers.py": 33,
    "experiments/test_processes.py": 29, "tests/test_extending.py": 23, "serving/test_faults.py": 23,
    "http/test_openapi.py": 22, "sweep/test_file.py": 21, "explorer/test_web_page.py": 20,
    "operations/test_refresh.py": 20, "runtime/test_several_embeddings.py": 18, "events/test_event_cluster.py": 16,
    "release/test_precision.py": 15, "cycle/test_simulated_months.py": 14, "runtime/test_timestamps.py": 14,
    "events/test_kafka.py": 12, "experiments/test_compose.py": 11, "publishing/test_new_items.py": 10,
    "publishing/test_newer_data.py": 10,
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run long files first, then those with most slow tests: the worker with the last file leaves the others idle."""
    slow = Counter(item.path for item in items if {"slow", "spark"} & {mark.name for mark in item.iter_markers()})
    items.sort(key=lambda item: (-LONG.get(f"{item.path.parent.name}/{item.path.name}", 0), -slow[item.path]))


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
    torch.onnx.export = ORIGINAL
    del os.environ[FOLDER]


@pytest.fixture(autouse=True)
def _same_every_time() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
