"""Run folders and loggers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from commands import run_all
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from omegaconf import OmegaConf
from tiny_run import command
from worlds import compose

from recsys.core.errors import UserError
from recsys.experiments import tracking
from recsys.experiments.tracking import RunFolder


def test_state_and_metrics_are_added_to(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", OmegaConf.create({"a": 1}))
    assert run.state == {}
    assert run.metrics == {}
    run.update(status="running", seconds=1.0)
    run.update(status="finished")
    assert run.state == {"status": "finished", "seconds": 1.0}
    run.write_metrics({"val/recall@10": 0.5})
    assert run.metrics == {"val/recall@10": 0.5}
    run.write_per_user(pa.table({"user_id": [1]}))
    names = sorted(file.name for file in (tmp_path / "run").iterdir())
    assert names == ["config.yaml", "metrics.json", "per_user.parquet", "run.json"]


def test_the_configuration_is_resolved(tmp_path: Path) -> None:
    RunFolder(tmp_path, OmegaConf.create({"a": 1, "b": "${a}"}))
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"), resolve=False) == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": {"b": 2, "c": [1]}}, "a.b=1, but a.b=2 is asked for"),
        ({"a": {"b": 1, "c": [2]}}, r"a.c=\[1\], but a.c=\[2\]"),
        ({"a": {"b": 1, "c": [1], "d": 3}}, "a.d=None, but a.d=3"),
        ({"a": {"b": 1}}, "a.c="),
    ],
)
def test_another_configuration_is_refused(tmp_path: Path, other: dict[str, object], message: str) -> None:
    config = OmegaConf.create({"a": {"b": 1, "c": [1]}})
    RunFolder(tmp_path, config)
    RunFolder(tmp_path, config)
    with pytest.raises(UserError, match=message):
        RunFolder(tmp_path, OmegaConf.create(other))


def test_whether_to_test_may_be_decided_later(tmp_path: Path) -> None:
    def stored() -> object:
        return OmegaConf.load(tmp_path / "config.yaml").test

    RunFolder(tmp_path, OmegaConf.create({"a": 1, "test": False}))
    RunFolder(tmp_path, OmegaConf.create({"a": 1, "test": True}))
    assert stored() is True
    # A run that was tested stays one.
    RunFolder(tmp_path, OmegaConf.create({"a": 1, "test": False}))
    assert stored() is True
    with pytest.raises(UserError, match="a=1, but a=2 is asked"):
        RunFolder(tmp_path, OmegaConf.create({"a": 2, "test": True}))


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.core.distributed.is_first", lambda: False)
    run = RunFolder(tmp_path, OmegaConf.create({"a": 1}))
    run.update(status="running")
    run.write_metrics({"a": 1.0})
    run.write_per_user(pa.table({"user_id": [1]}))
    assert list(tmp_path.iterdir()) == []
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
