"""Runs and releases that several tests read and none changes. Test modules import the fixture `published`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from worlds import write_run, write_world

from recsys.build import load_run
from recsys.index import Exact, IVFFlat
from recsys.promotion import promote
from recsys.release.store import ReleaseStore


@dataclass(frozen=True)
class Published:
    """Two runs of one world, equal but for their weights, and the releases of both."""

    root: Path
    runs: tuple[Path, Path]
    store: Path
    versions: tuple[str, str]


_made: list[Published] = []


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    # Each module that imports the fixture asks for it anew; it is made once.
    if not _made:
        _made.append(_publish(tmp_path_factory.mktemp("published")))
    return _made[0]


def _publish(base: Path) -> Published:
    root = write_world(base / "data")
    store = ReleaseStore(base / "store")
    runs, versions = [], []
    for seed, index in ((0, Exact()), (1, IVFFlat())):
        runs.append(write_run(base / f"run{seed}", root, "user_tower.use_user_id=true", seed=seed))
        versions.append(promote(load_run(runs[-1]), index, store, "test", recall_target=1.0).version)
    store.set_alias("candidate", versions[0], "test")
    return Published(root, (runs[0], runs[1]), store.root, (versions[0], versions[1]))
