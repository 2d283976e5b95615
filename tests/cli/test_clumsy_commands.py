"""Command lines as people type them by mistake: each is answered in one line that says what to type."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from tiny_run import command

import recsys
from recsys.cli.commands import COMMANDS
from recsys.cli.main import main
from recsys.cli.preflight import check_state
from recsys.core.errors import UserError
from recsys.experiments.compose import compose_command

# Command line -> exit code and what the answer holds. It runs in a folder with the data sets `events` (Parquet) and
# `week=1, [2]`, the run `runs/first`, the store `models` with a broken alias, and the file `notes.txt`.
CLUMSY = {
    # Commands.
    "recsys trian": (2, "recsys trian: no such command; did you mean 'train'?"),
    "recsys Train": (2, "did you mean 'train'?"),
    "recsys embed_items release=x": (2, "did you mean 'embed-items'?"),
    "recsys train --help user_towr": (2, "user_towr: no such group; did you mean 'user_tower'?"),
    # Words that are not KEY=VALUE.
    "recsys train --data.root=events": (1, "--data.root=events: expected data.root=events (settings have no --)"),
    "recsys train --lr 0.1": (1, "--lr: expected optimizer.lr=0.1"),
    "recsys train --epochs=3": (1, "expected trainer.max_epochs=3"),
    "recsys train data=parquet data.root events": (1, "data.root events: expected data.root=events"),
    "recsys train model.dim = 32": (1, "model.dim = 32: expected model.dim=32 without blanks"),
    "recsys train model.dim= 32": (1, "model.dim= 32: expected model.dim=32 without blanks"),
    "recsys train -m optimizer.lr=0.1, 0.3": (1, "expected optimizer.lr=0.1,0.3 without blanks"),
    "recsys train data=parquet data.root=my data": (1, "root=my data: expected 'data.root=my data', in quotes"),
    "recsys train quickstart": (1, "quickstart: expected +experiment=quickstart"),
    "recsys train events": (1, "events: expected KEY=VALUE, such as data=parquet data.root=events"),
    "recsys compare runs/first --metric test/recall@10": (1, "--metric: expected metrics="),
    "recsys train --cfg": (1, "--cfg: expected --cfg job, which shows the configuration"),
    "recsys train ''": (1, "found an empty word, expected KEY=VALUE"),
    "recsys train model.dim:32": (1, "model.dim:32: expected model.dim=32"),
    # Keys.
    "recsys train model/dim=32": (1, "Type model.dim=32"),
    "recsys train lr=0.1": (1, "did you mean 'optimizer.lr'? Type optimizer.lr=0.1"),
    "recsys train optimzer.lr=0.1": (1, "Type optimizer.lr=0.1"),
    "recsys train learning_rate=0.1": (1, "Type optimizer.lr=0.1"),
    "recsys train +trainer.precisio=16": (1, "Type trainer.precision=16"),
    "recsys train precision=bf16-mixed": (1, "Type trainer.precision=bf16-mixed"),
    "recsys train -m seed=1,2 modle.dim=8,16": (1, "Type model.dim=8,16"),
    "recsys train data_root=events": (1, "Type data=parquet data.root=events"),
    "recsys train data.root=events": (1, "data=synthetic has no 'root'; csv"),
    "recsys train data.features.interaction.action.role=event": (1, "Type data.features.interactions."),
    "recsys train data.features.items.text.kind=txt": (1, "kind=txt: no such kind; did you mean 'text'?"),
    "recsys train data.features.items.text.type=txt": (1, "did you mean 'data.features.items.text.kind'?"),
    "recsys train data.features.items.text=text": (1, "Type data.features.items.text.kind=text"),
    "recsys train data.features.items.text=true": (1, "expected a kind, such as data.features.items.text.kind="),
    "recsys train 'data.features={\"items\":{\"text\":\"text\"}}'": (1, "Type data.features.items.text.kind=text"),
    "recsys train split.test_days=3": (1, "'; recsys.data.preparation.splits.TemporalSplit takes train, val"),
    "recsys train loss.t=5": (1, "'loss.t'; recsys.training.losses.SampledSoftmax takes "),
    "recsys train logger._target_=lightning.pytorch.loggers.CSVLogger": (1, "Type '+logger.NAME={{_target_: light"),
    "recsys train ~loss": (1, "~loss: recsys train needs it; loss=NAME chooses another option: full_softmax"),
    "recsys train ~model.dim": (1, "~model.dim: recsys train needs it"),
    "recsys train ~callbacks.early_stoping": (1, "Type ~callbacks.early_stopping"),
    "recsys train index=hnsw": (1, "recsys train has no group 'index'; it belongs to recsys gates, recsys index"),
    "recsys index run=runs/first index=hnsw index.build_thread=2": (1, "Type index.build_threads=2"),
    "recsys serve relase=production": (1, "Type release=production"),
    "recsys retrain data.rot=events": (1, "Type data.root=events"),
    "recsys baselines evaluation.metrics=val/recall@10": (1, "Type evaluation.metric=val/recall@10"),
    "recsys generators report release=[a]": (1, "Type releases=[a]"),
    # Groups.
    "recsys train user_tower=transfomer": (1, "user_tower=transfomer: no such option; did you mean 'transformer'?"),
    "recsys train +experiment=beuty": (1, "experiment=beuty: no such option; did you mean 'beauty'?"),
    "recsys train data=events": (1, "expected data=parquet data.root=events"),
    "recsys train crossing=mlp": (1, "expected crossing@item_tower.crossing=mlp or crossing@user_tower.crossing=mlp"),
    "recsys train user_tower=mean user_tower.encoder.num_heads=4": (1, "Type user_tower=transformer user_tower."),
    # Values.
    "recsys train trainer.max_epochs=ten": (1, "trainer.max_epochs: found 'ten', expected an integer or null"),
    "recsys train batch_size=64.5": (1, "batch_size: found 64.5, expected an integer"),
    "recsys train optimizer.lr=0,001": (1, "decimals have a point: optimizer.lr=0.001"),
    "recsys train seed=1,2": (1, "seed=1,2: several values need -m"),
    "recsys train optimizer.betas=0.9": (1, "optimizer.betas: found 0.9, expected a list"),
    "recsys train user_tower._target_=no_such_package.Tower": (1, "no module named 'no_such_package'"),
    "recsys recommend run=runs/first k=many out=x.parquet": (1, "k: found 'many', expected an integer"),
    # Places.
    "recsys train data=parquet data.root=": (1, "data.root: empty, expected data.root=DIR"),
    "recsys train item_tower=pretrained pretrained@item_tower.pretrained=earlier_run": (
        1,
        "item_tower.pretrained.source.path: missing, expected item_tower.pretrained.source.path=RUN",
    ),
    "recsys train hydra.run.dir=models": (1, "hydra.run.dir: models is a folder of releases"),
    "recsys index run=runs/first store=notes.txt": (1, "store: notes.txt is a file, expected a folder of releases"),
    "recsys index run=runs/first alias=Best": (1, "alias: found 'Best', expected a lower-case name"),
    "recsys index sweep=rnus": (1, "sweep: rnus: no such file or folder in {here}; did you mean runs?"),
    "recsys train data=parquet": (1, "data.root: missing, expected data.root=DIR"),
    "recsys train data=parquet data.root=event": (1, "event: no such file or folder in {here}; did you mean events?"),
    "recsys train data=parquet data.root=events/interactions.parquet": (1, "expected its folder: data.root=events"),
    "recsys train hydra.run.dir=notes.txt/run": (1, "hydra.run.dir: notes.txt is a file, expected a folder"),
    "recsys index": (1, "found neither, expected run=RUN (a run folder) or sweep=DIR"),
    "recsys index run=runs": (1, "run: runs is not a run; it holds runs, such as run=runs/first"),
    "recsys index run=runs/firts": (1, "did you mean runs/first?"),
    "recsys index run=runs/first/checkpoints": (1, "is a part of a run; expected run={here}/runs/first"),
    "recsys recommend run=runs/first": (1, "out: missing, expected out=FILE"),
    "recsys recommend run=runs/first out=runs": (1, "out: runs is a folder, expected the name of a file in it"),
    "recsys recommend run=runs/first out=x.xlsx": (1, "out: x.xlsx: expected a name that ends in .parquet, .csv"),
    "recsys recommend run=runs/first users=ids.csv out=x.csv": (1, "users: ids.csv: no such file or folder in {here}"),
    "recsys recommend release=production store=models out=x.csv": (1, "release: models has no alias 'production'"),
    "recsys recommend release=production store=runs out=x.csv": (1, "store: {here}/runs holds no releases"),
    "recsys serve release=production": (1, "store: {here}/releases is not a folder; `recsys index` publishes"),
    "recsys lineage": (1, "version: missing, expected version=VERSION|ALIAS"),
    "recsys compare runs/fist": (1, "runs/fist: no such file or folder in {here}; did you mean runs/first?"),
    "recsys sweep sweeps/none.yaml": (1, "file: sweeps/none.yaml: no such file or folder in {here}"),
    "recsys embed-items release=candidate items=new.parquet out=x": (1, "items: new.parquet: no such file"),
    "recsys gates run=runs/first": (1, "against: missing, expected against=VERSION|ALIAS"),
    "recsys releases shwo": (1, "action: found 'shwo'; did you mean 'show'?"),
    "recsys releases alais production x": (1, "action: found 'alais'; did you mean 'alias'?"),
    "recsys releases remove x": (1, "action: found 'remove'; valid: alias, delete, keygen, list, rollback, show"),
    "recsys releases list store=modls": (1, "store: modls: no such file or folder in {here}; did you mean models?"),
    "recsys rollout strat": (1, "action: found 'strat'; did you mean 'start'?"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("clumsy")
    (here / "events").mkdir()
    (here / "events/interactions.parquet").touch()
    (here / "runs/first/checkpoints").mkdir(parents=True)
    (here / "runs/first/run.json").write_text("{}")
    (here / "models/aliases").mkdir(parents=True)
    (here / "models/aliases/candidate").write_text("0" * 16)
    (here / "notes.txt").touch()
    return here


@pytest.mark.parametrize("line", CLUMSY)
def test_a_clumsy_command_line(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, answer = CLUMSY[line]
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as end:
        main(shlex.split(line)[1:])
    said = capsys.readouterr()
    assert end.value.code == code
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert answer.format(here=folder) in said.err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_help_leaves_nothing_where_it_is_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main([name, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: recsys {name} ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["D/week=1, [2]", "D/it's 50% (new)", "D/ü;x", "7", "[x]", "a\\b\\"])
def test_a_path_is_taken_literally(path: str) -> None:
    assert compose_command("train", ["data=parquet", f"data.root={path}"]).data.root == path


def test_a_time_format_may_have_commas_and_blanks() -> None:
    config = compose_command("train", ["data=parquet", "data.root=x", "data.time_format=%b %d, %Y %H:%M"])
    assert config.data.time_format == "%b %d, %Y %H:%M"


def test_a_shell_may_remove_the_quotes_in_a_list() -> None:
    config = compose_command("retrain", ["data.root=x", "train=[model.dim=32,a b]"])
    assert list(config.train) == ["model.dim=32", "a b"]


def test_the_python_api_says_what_to_type() -> None:
    for overrides, message in (
        (["lr=0.1"], "Type optimizer.lr=0.1"),
        ("data=parquet", "overrides: found a text, expected a list such as ['data=parquet']"),
        (["-m", "seed=1,2"], "-m: no such option"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            recsys.train(overrides)


def test_a_folder_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The tests may run as root, whom modes do not bind.
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and Path(path) == tmp_path))
    with pytest.raises(SystemExit):
        main(["train", f"hydra.run.dir={tmp_path}/runs/x"])
    assert capsys.readouterr().err == f"error: hydra.run.dir: cannot write to {tmp_path}: permission denied\n"


@pytest.mark.parametrize("word", ["model.dim=0", "trainer.precision=fp8", "variants={a:{overrides:[model.dim=0]}}"])
def test_a_refused_training_leaves_nothing(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["train", *command(Path("runs/x"), tmp_path / "cache", "logger=wandb", word)[1:]])
    assert "error: " in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_state_of_an_earlier_version_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("events.sqlite").touch()
    check_state("events", "elsewhere.sqlite", store="releases")
    check_state("events", "redis://localhost/0", store="releases")
    with pytest.raises(UserError, match="Type events=events.sqlite to go on with it, or move it to"):
        check_state("events", "releases/state/events.sqlite", store="releases")
