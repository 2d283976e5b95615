"""Runs and releases that several tests read and none changes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock


@dataclass(frozen=True)
class Published:
    """Two runs of one world, equal but for their weights, and the releases of both, of which the second has parts."""

    root: Path
    runs: tuple[Path, Path]
    store: Path
    versions: tuple[str, str]


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        # The folder of the whole test run: exporting two towers takes ten seconds, so one process does it for all.
        base = base.parent
    with FileLock(base / "published.lock"):
        done = base / "published.versions"
        if not done.exists():
            done.write_text(" ".join(_publish(base / "published")))
    first, second = done.read_text().split()
    base /= "published"
    return Published(base / "data", (base / "run0", base / "run1"), base / "store", (first, second))


def _publish(base: Path) -> list[str]:
    # Imported here, since every test imports this file.
    from worlds import write_run, write_world

    from recsys.experiments.trained_run import load_run
    from recsys.index import Exact, IVFFlat
    from recsys.publishing.promote import promote
    from recsys.release.store import ReleaseStore

    root = write_world(base / "data")
    store = ReleaseStore(base / "store")
    versions = []
    for seed, index, shards in ((0, Exact(), 1), (1, IVFFlat(), 3)):
        run = write_run(base / f"run{seed}", root, "user_tower.use_user_id=true", seed=seed)
        versions.append(
            promote(load_run(run), index, store=store, model="test", recall_target=1.0, shards=shards).version
        )
    store.set_alias("candidate", versions[0], why="test")
    return versions
