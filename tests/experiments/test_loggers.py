"""Loggers of a run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import REPOSITORY, run_all
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tiny_run import command
from worlds import compose

from recsys.core.errors import UserError
from recsys.experiments import loggers
from recsys.experiments.environment import git_commit, peak_memory_bytes


def test_only_the_first_process_logs_to_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.core.distributed.is_first", lambda: False)
    assert [type(logger) for logger in loggers.build_loggers(compose("train", []), tmp_path)] == [CSVLogger]


def test_csv_always_with_a_file_for_each_start(tmp_path: Path) -> None:
    config = compose("train", ["logger=csv"])
    (first,) = loggers.build_loggers(config, tmp_path)
    first.log_metrics({"a": 1.0}, 0)
    first.save()
    (second,) = loggers.build_loggers(config, tmp_path)
    assert (first.version, second.version) == ("0", "1")
    assert (tmp_path / "logs/0/metrics.csv").exists()


def test_the_files_uploaded_with_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    logger = WandbLogger.__new__(WandbLogger)
    monkeypatch.setattr(WandbLogger, "experiment", SimpleNamespace(id="abc", log_artifact=logged.append), raising=False)
    monkeypatch.setattr(loggers, "wandb_online", lambda: True)
    (tmp_path / "checkpoints").mkdir()
    for name in ("checkpoints/best.ckpt", "config.yaml", "per_user.parquet"):
        (tmp_path / name).write_text(name)
    loggers.log_checkpoint([CSVLogger(tmp_path), logger], tmp_path, fingerprint="f00")
    (artifact,) = logged
    assert (artifact.name, artifact.type, artifact.metadata) == ("model-abc", "model", {"fingerprint": "f00"})
    assert sorted(artifact.manifest.entries) == ["best.ckpt", "config.yaml", "per_user.parquet"]


def test_commit_and_memory() -> None:
    commit = git_commit()
    assert commit is None or len(commit.rstrip("+")) == 40
    assert peak_memory_bytes() > 10**7


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


OUTSIDE = """
import json
import os
import sys
from pathlib import Path

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class Lines(Logger):
    name, version = "lines", "0"

    def __init__(self, save_dir, prefix=""):
        super().__init__()
        self.file, self.prefix = Path(save_dir) / "lines.jsonl", prefix

    @rank_zero_only
    def log_hyperparams(self, params, *arguments, **settings):
        self.write({"dim": params["model"]["dim"]})

    @rank_zero_only
    def log_metrics(self, metrics, step=None):
        self.write({f"{self.prefix}{name}": value for name, value in metrics.items()} | {"step": step})

    def write(self, content):
        with self.file.open("a") as file:
            file.write(json.dumps(content) + "\\n")
"""
OPTION = """
defaults:
  - csv
lines:
  _target_: outside_loggers.Lines
  _partial_: true
  prefix: mine.
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a logger, and a folder of options."""
    (tmp_path / "outside_loggers.py").write_text(OUTSIDE)
    (tmp_path / "conf/logger").mkdir(parents=True)
    (tmp_path / "conf/logger/lines.yaml").write_text(OPTION)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(REPOSITORY / "src")]))
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_logger_of_an_outside_package_receives_the_metrics_of_a_run(outside: Path) -> None:
    run = outside / "run"
    arguments = command(run, outside / "cache", "logger=lines", "trainer.max_epochs=1")
    arguments = [word for word in arguments if word != "logger=csv"]
    arguments[1:1] = ["--config-dir", str(outside / "conf")]
    second = "+logger.second={_target_: outside_loggers.Lines, save_dir: " + str(outside) + "}"
    ((code, output),) = run_all([{"args": [*arguments, second]}], outside)
    assert code == 0, output
    written = [json.loads(line) for line in (run / "lines.jsonl").read_text().splitlines()]
    assert written[0] == {"dim": 8}
    stored = json.loads((run / "metrics.json").read_text())
    found = {name: value for line in written for name, value in line.items()}
    for name in ("val/ndcg@10", "test/recall@10"):
        assert found[f"mine.{name}"] == pytest.approx(stored[name])
    # Two at once, each with its own settings; CSV files are written too.
    assert "test/recall@10" in (outside / "lines.jsonl").read_text()
    assert (run / "logs/0/metrics.csv").exists()


def test_several_loggers_in_any_order_with_the_name_and_group_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(WandbLogger, "experiment", SimpleNamespace(config={}), raising=False)
    (tmp_path / "multirun.yaml").write_text("hydra: {overrides: {task: ['model.dim=8,16']}}")
    run = tmp_path / "0"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra/overrides.yaml").write_text("['model.dim=8']")
    config = compose("train", ["logger=[wandb,tensorboard,csv]", "logger.examples=0"])
    made = {type(logger): logger for logger in loggers.build_loggers(config, run)}
    assert [*made] == [CSVLogger, WandbLogger, TensorBoardLogger]
    assert made[WandbLogger]._wandb_init | {"name": "dim=8", "group": tmp_path.name} == made[WandbLogger]._wandb_init
    assert Path(made[TensorBoardLogger].log_dir) == run / "tensorboard/dim=8"
    named = compose("train", ["logger=tensorboard", "logger.name=mine"])
    assert Path(loggers.build_loggers(named, run)[1].log_dir) == run / "tensorboard/mine"


@pytest.mark.parametrize(
    ("name", "install"), [("MLflowLogger", r"pip install 'recsys\[mlflow\]'"), ("CometLogger", "install it with pip")]
)
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, install: str) -> None:
    (tmp_path / "needing.py").write_text(f"def {name}(save_dir):\n    raise ModuleNotFoundError('no x')")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = compose("train", ["logger=csv", f"+logger.one={{_target_: needing.{name}, _partial_: true}}"])
    message = rf"logger.one: needing.{name} needs a package that is not installed \(no x\): {install}"
    with pytest.raises(UserError, match=message):
        loggers.build_loggers(config, tmp_path)
    sys.modules.pop("needing")


@pytest.mark.usefixtures("outside")
def test_an_object_that_is_not_a_logger_is_refused(tmp_path: Path) -> None:
    config = compose("train", ["logger=csv", "+logger.wrong={_target_: datetime.timedelta}"])
    with pytest.raises(UserError, match="logger.wrong: found datetime.timedelta, expected a Lightning logger"):
        loggers.build_loggers(config, tmp_path)
    nameless = compose("train", ["logger=csv", "+logger._target_=outside_loggers.Lines"])
    with pytest.raises(UserError, match="logger._target_: expected below a name, logger.NAME._target_"):
        loggers.build_loggers(nameless, tmp_path)
