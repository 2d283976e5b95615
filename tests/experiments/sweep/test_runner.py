"""Sweeps on this machine: killed at any moment and started again, several at a time, stopped early."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import REPOSITORY, run_all
from rich.console import Console
from tiny_run import command as tiny

from recsys.cli.main import main
from recsys.core.cores import available_cores
from recsys.core.errors import UserError
from recsys.experiments.run_table import read_runs
from recsys.experiments.sweep.file import parse_sweep
from recsys.experiments.sweep.runner import report, run_sweep
from recsys.experiments.sweep.study import Record, SweepStudy
from recsys.experiments.sweep.trial import end_orphan

FAKE = Path(__file__).parents[2] / "helpers/fake_train.py"


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.experiments.sweep.runner._POLL_SECONDS", 0.02)


def content(**change: Any) -> dict[str, Any]:
    usual = {
        "program": str(FAKE),
        "command": ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"],
        "method": "grid",
        "metric": {"name": "val/x", "goal": "maximize"},
        "parameters": {"value": {"values": [0.2, 0.5, 0.3]}, "seconds": {"value": 0.01}},
    }
    return usual | change


def run(folder: Path, workers: int = 1, max_runs: int | None = None, **change: Any) -> tuple[SweepStudy, str]:
    output = io.StringIO()
    console = Console(file=output, width=200)
    study = run_sweep(parse_sweep(content(**change)), folder, max_runs=max_runs, workers=workers, console=console)
    report(study, folder, console=console)
    return study, output.getvalue()


def starts(folder: Path, number: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / str(number) / "starts").read_text().splitlines()]


def values(study: SweepStudy) -> list[float | None]:
    return [record.value for record in study.records()]


def test_a_sweep_starts_without_torch() -> None:
    code = "import sys, recsys.experiments.sweep.runner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    study, output = run(tmp_path / "sweep", workers=2)
    assert values(study) == [0.2, 0.5, 0.3]
    assert [record.status for record in study.records()] == ["done"] * 3
    (start,) = starts(tmp_path / "sweep", 1)
    # The test part is for the winner.
    place = f"hydra.run.dir='{tmp_path}/sweep/1'"
    assert start["arguments"] == ["test=false", "seconds=0.01", "value=0.5", place]
    assert start["threads"] == str(max(1, available_cores() // 2))
    assert start["group"] == "sweep"
    # Best first, what all share left out, and what to do with the winner.
    rows = [line.replace("│", " ").split() for line in output.splitlines() if line.startswith("│")]
    assert [row[:4] for row in rows] == [
        ["1", "done", "value=0.5", "0.5000"],
        ["2", "done", "value=0.3", "0.3000"],
        ["0", "done", "value=0.2", "0.2000"],
    ]
    assert f"best:    {tmp_path}/sweep/1" in output
    assert f"train:   python {FAKE} seconds=0.01 value=0.5\n" in output
    assert f"promote: recsys index sweep={tmp_path}/sweep metric=val/x" in output
    assert [(row.name, row.state.status, row.value("val/x")) for row in read_runs(tmp_path / "sweep")] == [
        ("0", "selected", 0.2), ("1", "selected", 0.5), ("2", "selected", 0.3),
    ]  # fmt: skip
    # Again: there is nothing left to do, and nothing is done.
    again, _ = run(tmp_path / "sweep")
    assert values(again) == [0.2, 0.5, 0.3]
    assert [len(starts(tmp_path / "sweep", number)) for number in range(3)] == [1, 1, 1]


def test_the_folder_holds_a_file_for_wandb_and_this_sweep_alone(tmp_path: Path) -> None:
    run(tmp_path, max_runs=1, metric={"name": "val/x", "goal": "maximize"})
    assert yaml.safe_load((tmp_path / "sweep.yaml").read_text()) == content()
    with pytest.raises(UserError, match=r"holds a sweep with method=grid, but method=random is requested"):
        run(tmp_path, max_runs=2, method="random")
    # More runs are no other sweep.
    study, _ = run(tmp_path, run_cap=2)
    assert values(study) == [0.2, 0.5]
    study, _ = run(tmp_path, max_runs=9)
    assert values(study) == [0.2, 0.5, 0.3]


def drawn(study: SweepStudy) -> list[tuple[str, ...]]:
    return [record.arguments for record in study.records()]


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_draws_depend_on_the_number_of_the_run_alone(tmp_path: Path, method: str) -> None:
    change = {"method": method, "parameters": {"value": {"min": 0.0, "max": 1.0}, "seconds": {"value": 0}}}
    whole, _ = run(tmp_path / "whole", max_runs=5, **change)
    for bound in (2, 3, 5):
        parts, _ = run(tmp_path / "parts", max_runs=bound, **change)
    assert drawn(parts) == drawn(whole)
    assert len({*drawn(whole)}) == 5
    with pytest.raises(UserError, match=f"max_runs: missing; method {method} has no end"):
        run(tmp_path / "endless", **change)


def test_bayes_draws_near_good_values(tmp_path: Path) -> None:
    """Against random draws, in a valley at (0.3, 0.01); the study alone, without processes."""

    def last(method: str) -> float:
        (tmp_path / method).mkdir()
        parameters = {
            "a": {"min": 0.0, "max": 1.0},
            "b": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0},
        }
        metric = {"name": "val/x", "goal": "minimize"}
        study = SweepStudy(
            tmp_path / method, parse_sweep(content(method=method, parameters=parameters, metric=metric)), max_runs=40
        )
        while (record := study.next()) is not None:
            a, b = (float(argument.split("=")[1]) for argument in record.arguments)
            study.end(record.number, abs(a - 0.3) + abs(math.log10(b) + 2))
        return sum(record.value or 0.0 for record in study.records()[-20:]) / 20

    assert last("bayes") < 0.7 * last("random")


def test_no_runs_start_after_the_target_is_reached(tmp_path: Path) -> None:
    study, _ = run(tmp_path, metric={"name": "val/x", "goal": "maximize", "target": 0.4})
    assert values(study) == [0.2, 0.5]
    study, _ = run(tmp_path / "low", metric={"name": "val/x", "goal": "minimize", "target": 0.25})
    assert values(study) == [0.2]
    assert study.ranked()[0].number == 0


def test_failed_runs_are_reported_and_the_sweep_continues(tmp_path: Path) -> None:
    study, output = run(
        tmp_path,
        parameters={
            "value": {"value": 0.5},
            "fail": {"values": ["out of luck", ""]},
            "nothing": {"values": ["true", "false"]},
        },
    )
    assert [record.status for record in study.records()] == ["failed", "failed", "failed", "done"]
    errors = [record.error for record in study.records()]
    assert errors[:2] == ["out of luck"] * 2
    assert errors[2] == "metric: the run has no 'val/x'; did you mean 'val/xx'?"
    assert "run 0 failed: out of luck  (fail=out of luck nothing=true value=0.5)" in output
    assert "best:    " in output
    # They are not tried again.
    run(tmp_path, parameters=study.sweep.content["parameters"])
    assert len(starts(tmp_path, 0)) == 1


def test_all_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(content(parameters={"fail": {"values": ["a", "b"]}})))
    with pytest.raises(SystemExit, match="1"):
        main(["sweep", str(file), f"dir={tmp_path}/out"])
    assert f"error: {tmp_path}/out: none of 2 runs have a result" in capsys.readouterr().err


def test_hyperband_stops_the_worse_runs(tmp_path: Path) -> None:
    study, output = run(
        tmp_path,
        early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2},
        parameters={
            "value": {"values": [0.5, 0.4, 0.1, 0.6]},
            "epochs": {"value": 8},
            "held": {"value": 0.1},
            "seconds": {"value": 0.01},
        },
    )
    # One after the other, at band 2 of values that climb by an eighth: .125; of .1 and .125 the one in place
    # int(2 / 2) = 1 is .1, which goes on; of .125, .1, .025 place 1 is .1, so that .025 stops; .15 goes on.
    assert [record.status for record in study.records()] == ["done", "done", "stopped", "done"]
    stopped = study.records()[2]
    assert len(stopped.history) < 8
    assert stopped.history[:2] == pytest.approx([0.0125, 0.025])
    assert stopped.value is None
    assert json.loads((tmp_path / "2/run.json").read_text())["status"] == "stopped"
    assert f"run 2 stopped: after {len(stopped.history)} validations  (" in output
    assert study.ranked()[0].number == 3


def start(file: Path, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "recsys.cli", "sweep", str(file), f"dir={folder}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")},
    )


def wait_for(folder: Path, numbers: Sequence[int], epoch: int) -> None:
    """Until each of the runs has done so many epochs."""
    deadline = time.monotonic() + 120
    for number in numbers:
        file = folder / str(number) / "epoch"
        while not file.exists() or int(file.read_text() or 0) < epoch:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    """A sweep whose runs wait behind their second epoch for the file `gate` beside it."""
    file = tmp_path / "gated.yaml"
    parameters = {"value": {"values": [0.2, 0.5, 0.3]}, "epochs": {"value": 4}, "gate": {"value": f"{tmp_path}/gate"}}
    file.write_text(yaml.safe_dump(content(parameters=parameters)))
    return file


@pytest.mark.slow
def test_killed_and_started_again(gated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    killed = start(gated, folder, "workers=2")
    # Two at a time: both have to come to the gate.
    wait_for(folder, [0, 1], 2)
    killed.kill()
    killed.wait()
    # The runs live on, until the same command ends them and takes them up where they were.
    done = start(gated, folder, "workers=2")
    while done.poll() is None and min(len(starts(folder, number)) for number in range(2)) < 2:
        time.sleep(0.02)
    (tmp_path / "gate").touch()
    output, _ = done.communicate()
    assert done.returncode == 0, output
    assert [record.value for record in records(gated, folder)] == [0.2, 0.5, 0.3]
    assert [len(starts(folder, number)) for number in range(3)] == [2, 2, 1]
    for number in range(2):
        logs = [(folder / f"{number}/logs/{start}/metrics.csv").read_text().splitlines() for start in range(2)]
        epochs = [{line.split(",")[0] for line in lines[1:]} for lines in logs]
        assert epochs[0] >= {"0", "1"}
        # Nothing was trained twice, but the epoch that was under way.
        assert epochs[1] <= {"2", "3"}


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(gated: Path, tmp_path: Path, signum: int) -> None:
    folder = tmp_path / "out"
    interrupted = start(gated, folder, "workers=2")
    wait_for(folder, [0, 1], 2)
    refused = start(gated, folder)
    assert "another process runs this sweep" in refused.communicate()[0]
    assert refused.returncode == 1
    interrupted.send_signal(signum)
    output, _ = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130
    assert output.splitlines()[-1] == "interrupted; the same command continues the sweep"
    # No process of a run is left.
    assert not any(end_orphan(folder / str(number)) for number in range(2))
    assert [record.status for record in records(gated, folder)] == ["running"] * 2
    (tmp_path / "gate").touch()
    done = start(gated, folder, "workers=3")
    assert "run 2 done" in done.communicate()[0]
    assert [record.value for record in records(gated, folder)] == [0.2, 0.5, 0.3]


def records(file: Path, folder: Path) -> list[Record]:
    return SweepStudy(folder, parse_sweep(yaml.safe_load(file.read_text())), max_runs=None).records()


def test_a_result_that_a_killed_sweep_did_not_see(tmp_path: Path) -> None:
    """The run had ended, and the sweep was killed before it noted that."""
    folder = tmp_path / "out"
    folder.mkdir()
    study = SweepStudy(folder, parse_sweep(content()), max_runs=None)
    for _ in range(2):
        assert study.next() is not None
    (folder / "0").mkdir()
    (folder / "0/run.json").write_text('{"status": "selected"}')
    (folder / "0/metrics.json").write_text('{"val/x": 0.9}')
    again, _ = run(folder)
    assert values(again) == [0.9, 0.5, 0.3]
    assert not (folder / "0/starts").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["workers=0"], "workers: found 0, expected a whole number of at least 1"),
        (["max_runs=x"], "max_runs: found 'x'"),
        (["-m"], "-m: no option of a sweep; expected file, dir, workers, max_runs, metric"),
        (["loss.lgq=off"], "unknown configuration key 'loss.lgq'; did you mean 'loss.logq'?"),
        (["user_tower=transfrmer"], "user_tower=transfrmer: no such option"),
        (["--config-dir", "/no/where"], "--config-dir: /no/where is not a folder"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(SystemExit, match="1"):
        main(["sweep", "sweeps/in_batch.yaml", "dir=/dev/null/sweep", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"model.dmi": {"value": 8}}, "unknown configuration key 'model.dmi'; did you mean 'model.dim'?"),
        # Of every choice, not of the first alone.
        ({"user_tower": {"values": ["mean", "transfrmer"]}}, "user_tower=transfrmer: no such option"),
        ({"batch_size": {"min": 8.0, "max": 9.0}}, "batch_size: found 8.5, expected an integer"),
    ],
)
def test_an_error_of_every_run_is_raised_before_the_first(
    parameters: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(UserError) as error:
        run(tmp_path / "out", max_runs=2, program="train.py", method="random", parameters=parameters)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"program: fit.py is not a file; start the sweep in its folder"):
        run(tmp_path / "out", program="fit.py")


def test_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    main(["sweep", str(tmp_path), "metric=val/x"])
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert [line[-1] for line in lines if "selected" in line] == ["1", "2", "0"]
    (tmp_path / "empty").mkdir()
    for arguments in ([str(tmp_path), "metric=val/y"], [str(tmp_path), "model.dim=2"], [str(tmp_path / "empty")]):
        with pytest.raises(SystemExit, match="1"):
            main(["sweep", *arguments])


@pytest.mark.slow
def test_a_sweep_of_real_runs_and_its_winner(tmp_path: Path) -> None:
    """The test part is looked at once, with the winner."""
    small = [word for word in tiny(tmp_path, tmp_path / "cache")[1:] if "hydra.run.dir" not in word]
    file, folder, store = tmp_path / "real.yaml", tmp_path / "out", tmp_path / "store"
    parameters = {"loss.logq": {"values": ["off", "corrected"]}, "evaluation.metric": {"value": "val/recall@10"}}
    metric = {"name": "val/recall@10", "goal": "maximize"}
    file.write_text(yaml.safe_dump(content(program="train.py", metric=metric, parameters=parameters)))
    done = start(
        file, folder, "workers=2", *small, "trainer.max_epochs=2", "refit=true", "callbacks.early_stopping.patience=1"
    )
    output, _ = done.communicate()
    assert done.returncode == 0, output
    rows = read_runs(folder)
    assert [(row.name, row.state.status) for row in rows] == [("0", "selected"), ("1", "selected")]
    assert [row.overrides["loss.logq"] for row in rows] == ["off", "corrected"]
    assert not any(name.startswith("test") for row in rows for name in row.metrics)
    found = [record.value for record in records_of(folder)]
    assert found == [row.value("val/recall@10") for row in rows]
    assert all(len(record.history) == 2 for record in records_of(folder))
    promote = ["index.py", f"sweep={folder}", "metric=val/recall@10", f"store={store}", "recall_target=0.5"]
    ((code, log),) = run_all([{"args": promote}], tmp_path)
    assert code == 0, log
    winner = max(rows, key=lambda row: (row.value("val/recall@10"), -int(row.name)))
    after = {row.name: row for row in read_runs(folder)}
    for name, row in after.items():
        assert row.state.status == ("finished" if name == winner.name else "selected")
        assert ("test/recall@10" in row.metrics) == (name == winner.name)
    version = log.splitlines()[-1]
    assert json.loads((store / version / "manifest.json").read_text())["run"] == str(winner.path)


def records_of(folder: Path) -> list[Record]:
    return SweepStudy(folder, parse_sweep(yaml.safe_load((folder / "sweep.yaml").read_text())), max_runs=None).records()
