"""Names of runs by what differs in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from run_rows import write

from recsys.cli.entry import output_dir
from recsys.cli.main import main
from recsys.core.errors import UserError
from recsys.experiments.multirun import MultirunReport
from recsys.experiments.run_names import describe, differences, group_of, name_of, names_of


def multirun(folder: Path, *task: str, params: dict[str, str] | None = None) -> Path:
    folder.mkdir(parents=True)
    content = {"hydra": {"overrides": {"task": list(task)}, "sweeper": {"params": params}}}
    (folder / "multirun.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_a_run_of_a_multirun_is_named_by_what_the_multirun_varies(tmp_path: Path) -> None:
    folder = multirun(
        tmp_path / "2026-01-01_10-00-00", "user_tower=mean,transformer", "seed=1", "optimizer.lr=choice(0.1,0.2)",
        params={"model.dim": "range(8,17,8)", "data.root": "somewhere"},
    )  # fmt: skip
    run = write(folder / "0", ["user_tower=mean", "seed=1", "optimizer.lr=0.1", "model.dim=8", "data.root=somewhere"])
    assert (name_of(run), group_of(run)) == ("user_tower=mean lr=0.1 dim=8", "2026-01-01_10-00-00")
    # The same command line written as a list is not a sweep.
    lists = multirun(tmp_path / "lists", "evaluation.metric=val/recall@10", "logger=[csv,wandb]")
    assert name_of(write(lists / "0", ["logger=[csv,wandb]"])) == "0"


def test_a_run_of_a_sweep_is_named_by_its_parameters(tmp_path: Path) -> None:
    parameters = {"model.dim": {"values": [8, 16]}, "optimizer.lr": {"min": 0.1, "max": 0.2}, "test": {"value": False}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"parameters": parameters | {"seed": {"values": [1]}}}))
    run = write(tmp_path / "3", ["test=false", "model.dim=8", "optimizer.lr=0.15", "seed=1"])
    assert (name_of(run), group_of(run)) == ("dim=8 lr=0.15", tmp_path.name)


def test_a_single_run_keeps_the_name_of_its_folder_unless_that_is_a_time(tmp_path: Path) -> None:
    overrides = ["data=parquet", "data.root=/d", "user_tower=mean", "logger=csv"]
    timed, named = write(tmp_path / "2026-01-01_10-00-00", overrides), write(tmp_path / "mean", overrides)
    assert [name_of(timed), name_of(named)] == ["user_tower=mean", "mean"]
    assert group_of(timed) is None
    assert name_of(write(tmp_path / "2026-01-01_10-00-01", [])) == "2026-01-01_10-00-01"
    variant = write(named / "variants/deep")
    assert (name_of(variant), group_of(variant)) == ("deep", "mean")


def test_keys_are_as_short_as_they_can_be() -> None:
    assert describe({"user_tower.dropout": "0.1", "item_tower.dropout": "0.2", "model.dim": "8"}) == (
        "user_tower.dropout=0.1 item_tower.dropout=0.2 dim=8"
    )
    assert describe({"seed": "1", "data.seed": "2"}) == "seed=1 data.seed=2"
    long = describe({f"tower.setting_{number}": "0.123456" for number in range(9)})
    assert len(long) == 60
    assert long.endswith("…")


def test_names_of_runs_that_are_shown_together(tmp_path: Path) -> None:
    one, two = {"model.dim": "8", "seed": "1"}, {"model.dim": "16", "seed": "1"}
    runs = [("0", tmp_path / "0", one), ("1", tmp_path / "1", two), ("mine", tmp_path / "mine", two)]
    assert names_of(runs) == ["dim=8", "dim=16", "mine"]
    # Equal settings, such as repeated starts, stay apart.
    again = [("a/0", tmp_path / "a/0", one), ("b/0", tmp_path / "b/0", one), ("b/1", tmp_path / "b/1", two)]
    assert names_of(again) == ["a/0: dim=8", "b/0: dim=8", "dim=16"]
    assert names_of(runs[:1]) == ["0"]


def test_differing_overrides() -> None:
    one = {"model.dim": "8", "loss.logq": "off", "user_tower": "mean"}
    two = {"model.dim": "8", "loss.logq": "classic"}
    three = {"model.dim": "8", "loss.logq": "off"}
    assert differences([one, two, three]) == [
        {"loss.logq": "off", "user_tower": "mean"},
        {"loss.logq": "classic"},
        {"loss.logq": "off"},
    ]


def test_a_multirun_ends_with_its_table_and_what_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = multirun(tmp_path / "many runs", "model.dim=8,16")
    for number, (dim, value) in enumerate([(8, 0.1), (16, 0.3)]):
        run = write(folder / str(number), [f"model.dim={dim}"], **{"val/ndcg@10": value, "test/ndcg@10": value / 2})
        (run / "per_user.parquet").touch()
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}, "evaluation": {"metric": "val/ndcg@10"}})
    MultirunReport().on_multirun_end(config)
    *table, promote, compare = capsys.readouterr().out.splitlines()
    rows = [line.replace("│", " ").split() for line in table]
    first, second = (
        ["model.dim=16", "finished", "0.3000", "0.1500", "12", "1"],
        ["model.dim=8", "finished", "0.1000", "0.0500", "12", "0"],
    )
    assert rows.index(first) < rows.index(second)
    assert promote == f"promote: recsys index 'sweep={folder}' metric=val/ndcg@10"
    assert compare == f"compare: recsys compare '{folder}'"


def test_new_items_in_the_table_of_a_multirun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = multirun(tmp_path / "runs", "model.dim=8,16")
    new = {"test/cold_items/recall@10": 0.25, "test/cold_items/shown@10": 0.05}
    write(folder / "0", [], **{"val/ndcg@10": 0.2, "test/ndcg@10": 0.1} | new)
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}, "evaluation": {"metric": "val/ndcg@10"}})
    MultirunReport().on_multirun_end(config)
    words = capsys.readouterr().out.replace("│", " ").split()
    assert words[words.index("0.2000") :][:4] == ["0.2000", "0.1000", "0.2500", "0.0500"]


def test_a_run_that_fails_does_not_end_its_multirun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(config: DictConfig) -> None:
        run = Path(output_dir())
        (run / "run.json").write_text('{"status": "running"}')
        if config.seed == 2:
            raise UserError("optimizer.lr=1e12: the loss is not finite")
        (run / "run.json").write_text('{"status": "finished"}')
        (run / "metrics.json").write_text(f'{{"val/ndcg@10": {config.seed / 10}}}')

    monkeypatch.setattr("recsys.cli.train.main", train)
    with pytest.raises(SystemExit, match="1"):
        main(["train", "-m", "seed=1,2,3", f"hydra.sweep.dir={tmp_path}/all"])
    output, errors = capsys.readouterr()
    assert errors.splitlines() == [
        "error: optimizer.lr=1e12: the loss is not finite",
        "error: multirun: run 1 failed; the reasons are above",
    ]
    rows = [line.replace("│", " ").split()[:3] for line in output.splitlines() if "seed=" in line and "│" in line]
    assert rows == [["seed=3", "finished", "0.3000"], ["seed=1", "finished", "0.1000"], ["seed=2", "failed", "0"]]
    assert output.splitlines()[-1] == f"promote: recsys index sweep={tmp_path}/all metric=val/ndcg@10"
