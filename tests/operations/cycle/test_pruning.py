"""Runs of old cycles are removed unless an alias needs them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from publishing import Published
from worlds import compose

from recsys.core.errors import UserError
from recsys.operations.cycle.plan import CyclePlan
from recsys.operations.cycle.pruning import prune
from recsys.release.manifest import Manifest
from recsys.release.store import ReleaseStore


@pytest.fixture
def plan(published: Published, tmp_path: Path) -> CyclePlan:
    """Twelve cycles; `production` is of cycle 2, `previous` of cycle 1."""
    store = ReleaseStore(tmp_path / "store")
    for number in range(1, 13):
        run = tmp_path / f"retraining/two_tower/cycles/{number}/run"
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints/best.ckpt").write_text("weights")
        (run.parent / "rollout.json").write_text("{}")
    for number, version in enumerate(published.versions, 1):
        shutil.copytree(published.store / version, store.root / version)
        manifest = Manifest.load(store.root / version).to_json()
        run = tmp_path / f"retraining/two_tower/cycles/{number}/run"
        Manifest.from_json(manifest | {"run": str(run)}).save(store.root / version)
        store.set_alias("production", version, why="test")
    return plan_of(tmp_path)


def plan_of(base: Path, *overrides: str) -> CyclePlan:
    given = ["data.root=DATA", f"store={base / 'store'}", f"folder={base / 'retraining'}", *overrides]
    return CyclePlan(compose("retrain", given), compose("train", ["data=parquet", "data.root=DATA"]), variants={})


def left(plan: CyclePlan) -> list[int]:
    return sorted(int(path.parent.name) for path in plan.folder.glob("cycles/*/run"))


def test_the_newest_runs_and_those_of_aliases_stay(plan: CyclePlan, tmp_path: Path) -> None:
    assert plan.config.keep == 10
    # The two oldest are those of `previous` and `production`.
    assert prune(plan) == []
    plan = plan_of(tmp_path, "keep=4")
    assert [int(path.parent.name) for path in prune(plan)] == [3, 4, 5, 6, 7, 8]
    assert left(plan) == [1, 2, 9, 10, 11, 12]
    # What is told of them stays.
    assert len([*plan.folder.glob("cycles/*/rollout.json")]) == 12
    assert prune(plan) == []
    assert prune(plan_of(tmp_path, "keep=null")) == []
    plan.store.set_alias("production", plan.store.aliases()["previous"], why="back")
    prune(plan_of(tmp_path, "keep=0"))
    assert left(plan) == [1, 2]


def test_a_killed_removal_is_continued(plan: CyclePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, remove, calls = plan_of(tmp_path, "keep=4"), shutil.rmtree, []

    def cut_off(path: Any, *rest: Any, **more: Any) -> None:
        calls.append(path)
        if len(calls) == 2:
            (Path(path) / "checkpoints/best.ckpt").unlink()
            raise KeyboardInterrupt
        remove(path, *rest, **more)

    monkeypatch.setattr(shutil, "rmtree", cut_off)
    with pytest.raises(KeyboardInterrupt):
        prune(plan)
    monkeypatch.undo()
    assert left(plan) == [1, 2, *range(4, 13)]
    prune(plan)
    assert left(plan) == [1, 2, 9, 10, 11, 12]


def test_an_unreadable_release_prevents_removal(plan: CyclePlan, tmp_path: Path) -> None:
    served = plan.store.aliases()["production"]
    (plan.store.root / served / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest"):
        prune(plan_of(tmp_path, "keep=4"))
    with pytest.raises(UserError, match="keep: found -1"):
        plan_of(tmp_path, "keep=-1")
    assert left(plan) == list(range(1, 13))
