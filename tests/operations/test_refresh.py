"""`recsys refresh`: a served release gets the items and counts of newer data, behind gates, and keeps its towers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from omegaconf import DictConfig
from worlds import compose, write_run, write_world

import recsys
from recsys.cli.main import main
from recsys.core.errors import UserError
from recsys.experiments.trained_run import load_run
from recsys.index import Exact
from recsys.operations import refresh as refreshing
from recsys.operations.gates.verdict import Verdict
from recsys.operations.lineage import lineage
from recsys.operations.refresh import run_refresh
from recsys.publishing.promote import promote
from recsys.release.manifest import Manifest
from recsys.release.parts import count_of
from recsys.release.runtime.retriever import Retriever
from recsys.release.store import ReleaseStore

DAY = 86_400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with data, newer data, and a store whose `production` is a release of the data."""
    folder = tmp_path_factory.mktemp("refresh")
    root = write_world(folder / "data")
    shift = "model.prior_shift={weight: 0.5, half_life_days: 1.0, power: 1.0}"
    run = load_run(write_run(folder / "run", root, "split=temporal", shift))
    store = ReleaseStore(folder / "store")
    version = promote(run, Exact(), store=store, model="m", recall_target=1.0, shards=2).version
    store.set_alias("production", version, why="first")
    shutil.copytree(store.root, folder / "first_store")
    newer = folder / "newer"
    newer.mkdir()
    events, items, users = (pq.read_table(root / f"{name}.parquet") for name in ("interactions", "items", "users"))
    rows = [(f"u{n:03d}", f"i{(7 * n) % 60:03d}") for n in range(50)] + [(f"u{n:03d}", "new0") for n in range(8)]
    more = pa.table(
        {
            "user_id": [user for user, _ in rows],
            "item_id": [item for _, item in rows],
            "timestamp": 10**6 + np.arange(len(rows)) * (DAY // len(rows)),
        }
    )
    pq.write_table(pa.concat_tables([events, more], promote_options="default"), newer / "interactions.parquet")
    new = items.slice(0, 2).set_column(0, "item_id", pa.array(["new0", "new1"]))
    pq.write_table(pa.concat_tables([items, new]), newer / "items.parquet")
    pq.write_table(users, newer / "users.parquet")
    return folder


# Data gates would judge one small day, and untrained towers beat nobody.
QUIET = (
    "gates.clock", "gates.gaps", "gates.volume", "gates.activity", "gates.nulls", "gates.unseen", "gates.duplicates",
    "gates.labels", "gates.items", "gates.absolute", "gates.latency", "gates.shadow", "gates.shadow_hits",
)  # fmt: skip


def config(folder: Path, *words: str) -> DictConfig:
    given = [f"data.root={folder / 'newer'}", f"store={folder / 'store'}", f"folder={folder / 'refreshes'}"]
    return compose("refresh", ["release=production", *given, *(f"~{name}" for name in QUIET), *words])


def test_a_refresh_is_stopped_continued_and_recorded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ReleaseStore(folder / "store")
    served = store.aliases()["production"]
    # A gate that no release can pass leaves the alias and the store alone.
    stopped = run_refresh(config(folder, "gates.size.min_items_ratio=5"))
    assert (stopped.outcome, stopped.alias, store.aliases()["production"]) == ("stopped", None, served)
    assert stopped.verdict is not None
    assert stopped.verdict.stopped_by == ["size"]
    assert stopped.version not in store.versions()
    # The next call judges the release that was made, as it would after a kill.
    monkeypatch.setattr(refreshing, "promote", None)
    quiet = [f"~{name}" for name in QUIET]
    kept = recsys.refresh(
        "production", data=folder / "newer", store=store.root, overrides=[f"folder={folder / 'refreshes'}", *quiet]
    )
    assert kept.verdict is not None
    assert kept.verdict.passed, kept.verdict.failed
    assert (kept.outcome, kept.alias, kept.version) == ("kept", "production", stopped.version)
    assert store.aliases() == {"previous": served, "production": kept.version}
    manifest = Manifest.load(store.root / kept.version)
    newest = int(np.max(pq.read_table(folder / "newer/interactions.parquet")["timestamp"]))
    assert manifest.index_time == {"now": newest + 1, "horizon_days": 1.0}
    assert manifest.refreshed["from"] == served
    # Hosts of shards find their parts again.
    assert count_of(manifest) == 2
    before, after = (Manifest.load(store.root / version) for version in (served, kept.version))
    name = "item_tower.safetensors"
    assert before.files[name].sha256 == after.files[name].sha256
    assert before.metrics == after.metrics
    items = pq.read_table(store.root / kept.version / "items.parquet")["item_id"].to_pylist()
    assert {"new0", "new1"} <= {*items}
    # The lists to judge by came from the item biases of the time before the judged events.
    measured = kept.verdict.measured
    assert set(measured) == {"candidate", "served"}
    # The lineage names the release before, the time of the index, and the verdict.
    found = lineage(store, "production")
    assert found.refreshed["from"] == served
    assert found.verdict is not None
    assert found.verdict["against"] == served
    assert store.history()[-1]["why"] == f"recsys refresh from {served} now={newest + 1} horizon_days=1"


def test_the_command_says_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [f"store={folder / 'store'}", f"folder={tmp_path / 'refreshes'}"]
    for more, message in (
        (["release=nothing", f"data.root={folder / 'newer'}"], "has no alias 'nothing'"),
        (["release=production"], "data.root"),
        (["release=production", f"data.root={folder / 'newer'}", "now=soon"], "now: found 'soon'"),
        (["release=production", f"data.root={folder / 'newer'}", "alias=No"], "alias: found 'No'"),
    ):
        with pytest.raises(SystemExit) as code:
            main(["refresh", *words, *more])
        assert code.value.code == 1
        assert message in capsys.readouterr().err


def test_one_refresh_runs_at_a_time(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "two_tower").mkdir()
    with FileLock(tmp_path / "two_tower/.lock"), pytest.raises(UserError, match="another refresh of two_tower"):
        run_refresh(config(folder, f"folder={tmp_path}"))


class Killed(BaseException):
    """Stands for the end of the process."""


# Steps of one refresh that is killed before or after each of them, and started again.
STEPS = (
    (refreshing, "on_newer_data", "after"),
    (refreshing, "promote", "after"),
    (refreshing, "atomic_write", "after"),
    (refreshing, "judge_run", "after"),
    (Verdict, "save", "after"),
    (ReleaseStore, "_move", "before"),
    (ReleaseStore, "adopt", "after"),
    (ReleaseStore, "set_alias", "before"),
    (ReleaseStore, "set_alias", "after"),
)


def test_a_refresh_that_is_killed_at_every_step_is_completed(folder: Path, tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path / "store")
    shutil.copytree(folder / "first_store", store.root)
    served = store.aliases()["production"]
    words = [f"store={store.root}", f"folder={tmp_path / 'refreshes'}"]
    for place, name, moment in STEPS:
        real = getattr(place, name)

        def killed(*args: object, real=real, moment=moment, **named: object) -> None:
            if moment == "after":
                real(*args, **named)
            raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, name, killed)
            with pytest.raises(Killed):
                run_refresh(config(folder, *words))
        # Servers find a whole release.
        Retriever.load(store.root, "production")
        assert (store.aliases()["production"] == served) == ((name, moment) != ("set_alias", "after"))
    again = run_refresh(config(folder, *words))
    assert again.outcome == "unchanged"
    assert store.aliases() == {"previous": served, "production": again.version}
    assert sorted(store.versions()) == sorted([served, again.version])
    assert run_refresh(config(folder, *words)).outcome == "unchanged"
