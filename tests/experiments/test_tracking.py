"""Loggers of a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import run_all
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from tiny_run import command
from worlds import compose

from recsys.experiments import tracking


def test_only_the_first_process_logs_to_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.core.distributed.is_first", lambda: False)
    assert [type(logger) for logger in tracking.build_loggers(compose("train", []), tmp_path)] == [CSVLogger]


def test_csv_always_with_a_file_for_each_start(tmp_path: Path) -> None:
    config = compose("train", ["logger=csv"])
    (first,) = tracking.build_loggers(config, tmp_path)
    first.log_metrics({"a": 1.0}, 0)
    first.save()
    (second,) = tracking.build_loggers(config, tmp_path)
    assert (first.version, second.version) == ("0", "1")
    assert (tmp_path / "logs/0/metrics.csv").exists()


def test_what_goes_with_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    logger = WandbLogger.__new__(WandbLogger)
    monkeypatch.setattr(WandbLogger, "experiment", SimpleNamespace(id="abc", log_artifact=logged.append), raising=False)
    monkeypatch.setattr(tracking, "wandb_online", lambda: True)
    (tmp_path / "checkpoints").mkdir()
    for name in ("checkpoints/best.ckpt", "config.yaml", "per_user.parquet"):
        (tmp_path / name).write_text(name)
    tracking.log_checkpoint([CSVLogger(tmp_path), logger], tmp_path, "f00")
    (artifact,) = logged
    assert (artifact.name, artifact.type, artifact.metadata) == ("model-abc", "model", {"fingerprint": "f00"})
    assert sorted(artifact.manifest.entries) == ["best.ckpt", "config.yaml", "per_user.parquet"]


def test_commit_and_memory() -> None:
    commit = tracking.git_commit()
    assert commit is None or len(commit.rstrip("+")) == 40
    assert tracking.peak_memory_bytes() > 10**7


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = command(run, tmp_path / "cache", "logger=wandb", "logger.examples=3", "trainer.max_epochs=1")
    ((code, output),) = run_all([{"args": arguments}], tmp_path)
    assert code == 0, output
    (folder,) = (run / "wandb").glob("offline-run-*")
    (log,) = folder.glob("*.wandb")
    content = log.read_bytes()
    fingerprint = json.loads((run / "run.json").read_text())["dataset_fingerprint"]
    for part in (fingerprint, "test/recall@10", "val/ndcg@10", "every_n_train_steps", "examples"):
        assert part.encode() in content, part
    (table,) = folder.glob("files/media/table/examples_*.table.json")
    examples = json.loads(table.read_text())
    assert examples["columns"] == ["user_id", "history", "test", "recommended"]
    assert len(examples["data"]) == 3
    assert all(len(row[3].split()) == 10 for row in examples["data"])
    assert (run / "logs/0/metrics.csv").exists()
