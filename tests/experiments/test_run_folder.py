"""The folder of a run and its state."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pytest
from omegaconf import OmegaConf

from recsys.core.errors import UserError
from recsys.experiments.run_folder import RunFolder, RunState, RunStatus, read_state
from recsys.experiments.run_names import OVERRIDES, read_overrides

FULL = RunState(
    status=RunStatus.FINISHED,
    dataset_fingerprint="f00",
    git_commit="0" * 40,
    seconds=1.5,
    steps=20,
    selected=10,
    schedule_steps=20,
    targets_per_second=3.5,
    peak_memory_bytes=7,
    train_until=1_700_000_000,
    steps_before=3,
    parameters={"total": 3},
    popularity={"popularity": {"test/recall@10": 0.1}},
    refitted=True,
    variant="tastes",
    variants={"tastes": 0.5},
    generator="ease",
    metric="val/ndcg@10",
    tried=[{"settings": {"l2": 2.0}, "val/ndcg@10": 0.5}],
    settings={"l2": 2.0},
    exclude_seen=True,
    other={"key of another version": [1]},
)


def test_every_field_is_written_and_read(tmp_path: Path) -> None:
    unset = RunState()
    assert all(getattr(FULL, field.name) != getattr(unset, field.name) for field in dataclasses.fields(RunState))
    FULL.write(tmp_path)
    assert read_state(tmp_path) == FULL
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["key of another version"] == [1]
    assert content["status"] == "finished"


def test_unknown_values_are_left_out_except_required_keys() -> None:
    assert RunState(RunStatus.RUNNING).to_json() == {"status": "running", "git_commit": None, "seconds": 0.0}


def test_a_state_of_an_earlier_version_opens() -> None:
    fixture = Path(__file__).parents[1] / "fixtures/earlier_layout/run"
    state = read_state(fixture)
    assert (state.status, state.selected, state.steps, state.other) == (RunStatus.FINISHED, 1, 2, {})
    assert state.to_json() == json.loads((fixture / "run.json").read_text())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"status": "done"}', "status is 'done', expected one of running, selected, finished, stopped"),
        ('{"steps": "many"}', "steps is 'many', expected an integer"),
        ('{"seconds": null}', "seconds is None, expected a number"),
        ('{"variants": 3}', "variants is 3, expected keys and values"),
        ("[]", "found list, expected keys and values"),
        ("{", "missing or damaged"),
    ],
)
def test_a_damaged_state_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=f"{tmp_path}/run.json: {message}"):
        read_state(tmp_path)


def make_checkpoint(run: RunFolder) -> None:
    run.checkpoints.mkdir()
    (run.checkpoints / "last.ckpt").touch()


def test_an_attempt_without_a_checkpoint_gives_way_to_another_configuration(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, OmegaConf.create({"a": 1}))
    run.claim()
    run.update(status=RunStatus.RUNNING, seconds=9.0)
    run.write_metrics({"val/recall@10": 0.5})
    (tmp_path / "logs/0").mkdir(parents=True)
    (tmp_path / "notes.txt").touch()
    # The same configuration continues.
    assert RunFolder(tmp_path, OmegaConf.create({"a": 1})).state.seconds == 9.0
    other = RunFolder(tmp_path, OmegaConf.create({"a": 2}))
    assert other.state == RunState()
    # Until it is claimed, nothing changes.
    assert RunFolder(tmp_path, OmegaConf.create({"a": 1})).state.seconds == 9.0
    other.claim()
    assert (other.state, other.metrics) == (RunState(), {})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.yaml", "notes.txt"]
    assert OmegaConf.load(tmp_path / "config.yaml").a == 2


def test_state_and_metrics_are_added_to(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", OmegaConf.create({"a": 1}))
    assert run.state == RunState()
    assert run.metrics == {}
    assert not run.path.exists()
    run.claim()
    run.update(status=RunStatus.RUNNING, seconds=1.0)
    run.update(status=RunStatus.FINISHED)
    assert run.state == RunState(RunStatus.FINISHED, seconds=1.0)
    run.write_metrics({"val/recall@10": 0.5})
    assert run.metrics == {"val/recall@10": 0.5}
    run.write_per_user(pa.table({"user_id": [1]}))
    names = sorted(file.name for file in (tmp_path / "run").iterdir())
    assert names == ["config.yaml", "metrics.json", "per_user.parquet", "run.json"]


def test_the_configuration_is_resolved(tmp_path: Path) -> None:
    RunFolder(tmp_path, OmegaConf.create({"a": 1, "b": "${a}"})).claim()
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"), resolve=False) == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": {"b": 2, "c": [1]}}, "a.b=1, but a.b=2 is requested"),
        ({"a": {"b": 1, "c": [2]}}, r"a.c=\[1\], but a.c=\[2\]"),
        ({"a": {"b": 1, "c": [1], "d": 3}}, "a.d=None, but a.d=3"),
        ({"a": {"b": 1}}, "a.c="),
    ],
)
def test_another_configuration_is_refused(tmp_path: Path, other: dict[str, object], message: str) -> None:
    config = OmegaConf.create({"a": {"b": 1, "c": [1]}})
    run = RunFolder(tmp_path, config)
    run.claim()
    make_checkpoint(run)
    RunFolder(tmp_path, config).claim()
    with pytest.raises(UserError, match=message):
        RunFolder(tmp_path, OmegaConf.create(other))


def test_an_automatic_batch_size_is_that_of_the_earlier_start(tmp_path: Path) -> None:
    RunFolder(tmp_path, OmegaConf.create({"batch_size": 16, "seed": 0})).claim()
    again = OmegaConf.create({"batch_size": "auto", "seed": 0})
    RunFolder(tmp_path, again)
    assert again.batch_size == 16
    # An attempt with other settings may have had other data.
    other = OmegaConf.create({"batch_size": "auto", "seed": 1})
    RunFolder(tmp_path, other)
    assert other.batch_size == "auto"


def test_a_refused_start_does_not_rename_the_run(tmp_path: Path) -> None:
    words = tmp_path / OVERRIDES
    words.parent.mkdir()
    words.write_text("[optimizer.lr=0.1]")
    RunFolder(tmp_path, OmegaConf.create({"lr": 0.1})).claim()
    words.write_text("[optimizer.lr=0.5]")
    RunFolder(tmp_path, OmegaConf.create({"lr": 0.5}))
    assert read_overrides(tmp_path) == {"optimizer.lr": "0.1"}


def test_a_claim_can_be_undone_until_there_are_results(tmp_path: Path) -> None:
    config = OmegaConf.create({"lr": 0.1})
    run = RunFolder(tmp_path / "run", config)
    run.claim()
    run.update(status=RunStatus.RUNNING)
    run.unclaim()
    assert list((tmp_path / "run").iterdir()) == []
    run.claim()
    RunFolder(tmp_path / "run", config).unclaim()
    (run.checkpoints / "last.ckpt").mkdir(parents=True)
    run.unclaim()
    assert (tmp_path / "run/config.yaml").exists()


def test_whether_to_test_may_be_decided_later(tmp_path: Path) -> None:
    def stored() -> object:
        return OmegaConf.load(tmp_path / "config.yaml").test

    run = RunFolder(tmp_path, OmegaConf.create({"a": 1, "test": False}))
    run.claim()
    make_checkpoint(run)
    RunFolder(tmp_path, OmegaConf.create({"a": 1, "test": True})).claim()
    assert stored() is True
    # A run that was tested stays one.
    RunFolder(tmp_path, OmegaConf.create({"a": 1, "test": False})).claim()
    assert stored() is True
    with pytest.raises(UserError, match="a=1, but a=2 is requested"):
        RunFolder(tmp_path, OmegaConf.create({"a": 2, "test": True}))


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.core.distributed.is_first", lambda: False)
    run = RunFolder(tmp_path, OmegaConf.create({"a": 1}))
    run.claim()
    run.update(status=RunStatus.RUNNING)
    run.write_metrics({"a": 1.0})
    run.write_per_user(pa.table({"user_id": [1]}))
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_with_keys_that_are_off_and_that_it_did_not_have(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, OmegaConf.create({"a": 1}))
    run.claim()
    run.checkpoints.mkdir()
    (run.checkpoints / "last.ckpt").touch()
    off = {"a": 1, "portions": False, "admission": {"_target_": "x", "capacity": None}}
    assert RunFolder(tmp_path, OmegaConf.create(off)).state.status == run.state.status
    for key, value in (("portions", True), ("admission", {"_target_": "x", "capacity": 5})):
        with pytest.raises(UserError, match=f"holds a run with {key}=None, but {key}="):
            RunFolder(tmp_path, OmegaConf.create({**off, key: value}))
