"""Runs and releases that several tests read and none changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Published:
    """Two runs of one world, equal but for their weights, and the releases of both."""

    root: Path
    runs: tuple[Path, Path]
    store: Path
    versions: tuple[str, str]


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    # Imported here, since every test imports this file.
    from worlds import write_run, write_world

    from recsys.experiments.trained_run import load_run
    from recsys.index import Exact, IVFFlat
    from recsys.publishing.promote import promote
    from recsys.release.store import ReleaseStore

    base = tmp_path_factory.mktemp("published")
    root = write_world(base / "data")
    store = ReleaseStore(base / "store")
    runs, versions = [], []
    for seed, index in ((0, Exact()), (1, IVFFlat())):
        runs.append(write_run(base / f"run{seed}", root, "user_tower.use_user_id=true", seed=seed))
        versions.append(promote(load_run(runs[-1]), index, store=store, model="test", recall_target=1.0).version)
    store.set_alias("candidate", versions[0], why="test")
    return Published(root, (runs[0], runs[1]), store.root, (versions[0], versions[1]))
