"""Runs of a W&B project, through a stand-in that answers like `wandb.Api`."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import wandb
from written import CONFIG, write

from recsys.core.errors import UserError
from recsys.experiments import wandb_mirror
from recsys.experiments.run_folder import RunState, RunStatus
from recsys.experiments.run_logs import Curve
from recsys.reports.comparison import online, reading
from recsys.reports.comparison.differences import differences
from recsys.reports.comparison.online import fetch_run, read_wandb


class Entry:
    def __init__(self, file: Path) -> None:
        self.file, self.downloads = file, 0

    def download(self, root: str) -> str:
        self.downloads += 1
        Path(root).mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(self.file, root))


class Artifact:
    def __init__(self, kind: str, files: Iterable[Path]) -> None:
        self.type, self.entries = kind, {file.name: Entry(file) for file in files}

    def get_entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise KeyError(f"Path not contained in artifact: {name}")
        return self.entries[name]


class Run:
    """A run of `wandb.Api`: a summary with everything that the run logged last, and its artifacts."""

    entity, project = "team", "pins"

    def __init__(self, name: str, summary: dict[str, Any], artifacts: list[Artifact]) -> None:
        self.name, self.id = name, f"id-{name}"
        self.summary_metrics = {"_step": 30, "_wandb": {"runtime": 1}, "epoch": 3} | summary
        self.config = CONFIG | {"logger": {"project": "pins"}, "model": {"dim": len(name)}}
        self.artifacts = artifacts

    def logged_artifacts(self) -> list[Artifact]:
        return self.artifacts

    def scan_history(self) -> Iterable[dict[str, Any]]:
        yield {"_step": 1, "train/loss": 2.0, "trainer/global_step": 9}
        yield {"_step": 2, "val/ndcg@10": 0.25, "trainer/global_step": 19, "epoch": 0}
        # The selected checkpoint, looked at again.
        yield {"_step": 3, "val/ndcg@10": 0.5, "trainer/global_step": 0}
        yield {"_step": 4, "system/cpu": 1.0}


class Api:
    def __init__(self, runs: list[Run]) -> None:
        self.found, self.asked = runs, []  # type: ignore[var-annotated]

    def runs(self, path: str, *, filters: dict[str, Any]) -> list[Run]:
        self.asked.append((path, filters))
        return self.found

    def run(self, path: str) -> Run:
        for run in self.found:
            if path == f"team/pins/{run.id}":
                return run
        raise wandb.errors.CommError(f"Could not find run <Run {path} (not found)>")


def finished(tmp_path: Path, name: str, recall: list[float]) -> Run:
    folder = write(tmp_path / "local" / name, {"recall@10": recall}, {"seconds": 9.0})
    (folder / "best.ckpt").write_text("weights")
    files = [folder / "per_user.parquet", folder / "config.yaml", folder / "best.ckpt"]
    summary = {
        "test/recall@10": sum(recall) / len(recall),
        "val/ndcg@10": 0.5,
        "dataset_fingerprint": "f00",
        "status": "finished",
        "seconds": 9.0,
    }
    return Run(name, summary, [Artifact("model", files), Artifact("run-history", [])])


def test_runs_of_a_project(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = finished(tmp_path, "a", [0.1, 0.2]), finished(tmp_path, "bb", [0.3, 0.4])
    release = Run("release", {"version": "0123"}, [Artifact("release", [])])
    offline = Run("offline", {"test/recall@10": 0.5}, [Artifact("model", [])])
    api = Api([first, release, offline, second])
    with caplog.at_level(logging.WARNING):
        runs = read_wandb("wandb:team/pins", tmp_path / "cache", api=api)
    assert api.asked == [("team/pins", {"state": "finished"})]
    assert [run.name for run in runs] == ["a", "bb"]
    assert "offline (id-offline) is left out: it has no artifact with per_user.parquet" in caplog.text
    run = runs[0]
    assert run.metrics == {"test/recall@10": pytest.approx(0.15), "val/ndcg@10": 0.5}
    assert run.state == RunState(RunStatus.FINISHED, "f00", seconds=9.0, other={"epoch": 3})
    assert run.curves == {"train/loss": Curve([10], [2.0]), "val/ndcg@10": Curve([20], [0.25])}
    assert run.per_user == tmp_path / "cache/wandb/team/pins/id-a/per_user.parquet"
    assert run.test == {"dataset_fingerprint": "f00", "split": "{'name': 'temporal'}", "exclude_seen": "True"}
    assert run.row.overrides["model.dim"] == "1"
    assert "logger.project" not in run.row.overrides
    (difference,) = differences(runs, ["recall@10"], baseline=run)
    assert difference.paired.difference == pytest.approx(0.2)


def test_with_local_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api([finished(tmp_path, "a", [0.1, 0.2])])
    monkeypatch.setattr(wandb, "Api", lambda: api)
    monkeypatch.setattr(wandb_mirror, "wandb_online", lambda: True)
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    local = write(tmp_path / "b", {"recall@10": [0.0, 0.0]})
    assert [run.name for run in reading.read_runs(["wandb:team/pins/id-a", local])] == ["a", "b"]
    assert reading.run_folder("wandb:team/pins/id-a") == tmp_path / "cache/wandb/team/pins/id-a"


def test_the_last_artifact_counts(tmp_path: Path) -> None:
    run, again = finished(tmp_path, "a", [0.1, 0.2]), finished(tmp_path, "b", [0.3, 0.4])
    run.artifacts += again.artifacts
    (found,) = read_wandb("wandb:team/pins/id-a", tmp_path / "cache", api=Api([run]))
    assert found.per_user.read_bytes() == (tmp_path / "local/b/per_user.parquet").read_bytes()


def test_a_run_folder_is_fetched(tmp_path: Path) -> None:
    run = finished(tmp_path, "a", [0.1, 0.2])
    folder = fetch_run("wandb:team/pins/id-a", tmp_path / "cache", api=Api([run]))
    assert (folder / "checkpoints/best.ckpt").read_text() == "weights"
    assert (folder / "config.yaml").read_text() == (tmp_path / "local/a/config.yaml").read_text()
    (read,) = reading.read_folder(folder)
    assert read.metrics["test/recall@10"] == pytest.approx(0.15)
    assert read.state.status == "finished"
    with pytest.raises(UserError, match="expected one run, wandb:ENTITY/PROJECT/ID"):
        fetch_run("wandb:team/pins", tmp_path / "cache", api=Api([run]))
    run.artifacts = run.artifacts[1:]
    with pytest.raises(UserError, match="has no artifact with best.ckpt, config.yaml, per_user.parquet"):
        fetch_run("wandb:team/pins/id-a", tmp_path / "cache", api=Api([run]))


def test_unreadable_projects_and_runs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api([])
    with pytest.raises(UserError, match="wandb:team/pins: 0 finished runs, none with test metrics"):
        read_wandb("wandb:team/pins", tmp_path, api=api)
    with pytest.raises(UserError, match="wandb:team/pins/x: Could not find run"):
        read_wandb("wandb:team/pins/x", tmp_path, api=api)
    for address in ("wandb:", "wandb:team//x", "wandb:a/b/c/d"):
        with pytest.raises(UserError, match=f"{address}: expected wandb:ENTITY/PROJECT"):
            read_wandb(address, tmp_path, api=api)
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UserError, match="W&B is offline"):
        read_wandb("wandb:team/pins", tmp_path)


def test_the_fake_api_has_the_methods_of_the_real_one() -> None:
    """Names that are used of the client exist in the version that is installed."""
    from wandb.apis.public import Run as PublicRun

    for name in ("summary_metrics", "config", "scan_history", "logged_artifacts", "entity", "id", "name"):
        assert hasattr(PublicRun, name), name
    assert hasattr(wandb.Api, "runs")
    assert hasattr(wandb.Api, "run")
    assert hasattr(wandb.Artifact, "get_entry")
    assert online.PREFIX == "wandb:"
