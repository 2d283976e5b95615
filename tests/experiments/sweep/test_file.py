"""Sweep files: W&B takes ours as they are, and what is wrong with others is named."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import REPOSITORY
from tiny_run import command as tiny

from recsys.core.errors import UserError
from recsys.experiments.sweep.file import METHODS, parse_sweep, read_sweep
from recsys.experiments.sweep.hyperband import Hyperband
from recsys.experiments.sweep.runner import check_composition

FILES = sorted((REPOSITORY / "sweeps").glob("*.yaml"))
GOOD: dict[str, Any] = {
    "program": "train.py",
    "command": ["${env}", "${interpreter}", "${program}", "+experiment=x", "${args_no_hyphens}", "hydra.run.dir=RUN"],
    "method": "random",
    "metric": {"name": "val/recall@100", "goal": "maximize"},
    "parameters": {"model.dim": {"values": [8, 16]}, "loss.logq": {"value": "off"}},
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_ours_are_valid_to_wandb(file: Path) -> None:
    # Imported here, because every worker imports this file, and W&B's packages take seconds.
    from sweeps.config import schema_violations_from_proposed_config
    from wandb.sdk.launch.sweeps.utils import load_sweep_config

    content = load_sweep_config(str(file))
    assert content is not None
    # Settings that its service knows, and the last version of its engine that goes with numpy 2 does not yet.
    content.pop("run_cap", None)
    content.get("early_terminate", {}).pop("strict", None)
    assert schema_violations_from_proposed_config(content) == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_ours_do_what_they_say(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    sweep = read_sweep(file)
    check_composition(sweep.with_more(["data=parquet", "data.root=DIR"], []))
    text = file.read_text()
    assert f"recsys sweep sweeps/{file.name}" in text.split("name:")[0], "a sweep opens with its command"
    assert f"wandb sweep sweeps/{file.name}" in text.split("name:")[0]
    values = {parameter.name: parameter.settings.get("value") for parameter in sweep.parameters}
    assert values["test"] is False
    # What selects the checkpoint is what compares the runs, here and there.
    assert values["evaluation.metric"] == sweep.metric
    assert f"hydra.run.dir=runs/{file.stem}/${{oc.env:WANDB_RUN_ID}}" in sweep.command


def test_there_is_one_of_every_method() -> None:
    assert {read_sweep(file).method for file in FILES} >= {"grid", "bayes"}
    assert set(METHODS) == {"grid", "random", "bayes"}


class _Started:
    """Stands for the process that W&B's agent starts."""

    def __init__(self, env: dict[str, str], command: list[str], **_: Any) -> None:
        self.env, self.command = env, command


def agent_starts(content: dict[str, Any], values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> _Started:
    """What W&B's agent starts for a run whose values its service has drawn."""
    from wandb import wandb_agent

    monkeypatch.setattr(wandb_agent, "AgentProcess", _Started)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "")
    agent = wandb_agent.Agent.__new__(wandb_agent.Agent)
    agent._in_jupyter = agent._forward_signals = False
    agent._function, agent._run_processes = None, {}
    agent._sweep_command = copy.deepcopy(content["command"])
    arguments = {name: {"value": value} for name, value in values.items()}
    agent._command_run({"type": "run", "run_id": "abc", "program": content["program"], "args": arguments})
    started: _Started = agent._run_processes["abc"]
    return started


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_command_is_that_of_wandbs_agent(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SWEEP_ID", "sw33p")
    sweep = read_sweep(file)
    # What the service sends went through JSON.
    values = json.loads(json.dumps({p.name: p.choices[-1] if p.choices else p.quantile(0.3) for p in sweep.parameters}))
    theirs = agent_starts(dict(sweep.content), values, monkeypatch).command
    assert [word for word in theirs if not word.startswith("hydra.run.dir=")] == [
        "python" if word == sys.executable else word for word in sweep.command_line(sweep.arguments(values))
    ]


def test_variables_of_the_environment_are_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.delenv("NOTHING", raising=False)
    chunks = ["${program}", "data.root=${envvar:DATA}/x", "name=${envvar:NOTHING}", "${args_no_hyphens}"]
    sweep = parse_sweep(GOOD | {"command": chunks})
    assert sweep.command_line(["a=1"]) == ["train.py", "data.root=/data/x", "name=NOTHING", "a=1"]


@pytest.mark.slow
def test_a_run_of_wandbs_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, with everything that the agent gives to a run but the service."""
    content = yaml.safe_load((REPOSITORY / "sweeps/in_batch.yaml").read_text())
    small = [
        word for word in tiny(tmp_path, tmp_path / "cache")[1:] if "hydra.run.dir" not in word and "logger" not in word
    ]
    place = content["command"].index("${args_no_hyphens}")
    content["command"][place:place] = [*small, "trainer.max_epochs=1"]
    content["command"][-1] = content["command"][-1].replace("runs/", f"{tmp_path}/")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SWEEP_ID", "sw33p")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    values = {"loss.logq": "off", "model.temperature": 0.1, "test": False, "evaluation.metric": "val/recall@100"}
    started = agent_starts(content, values, monkeypatch)
    done = subprocess.run(started.command, env=started.env, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "in_batch/abc"
    assert done.stdout.splitlines()[-1] == str(run)
    assert json.loads((run / "run.json").read_text())["status"] == "selected"
    assert yaml.safe_load((run / "config.yaml").read_text())["loss"]["logq"] == "off"
    (log,) = (run / "wandb").glob("offline-run-*-abc/run-abc.wandb")
    written = log.read_bytes()
    # The service finds the run's sweep, and the metric that the sweep names.
    assert b"sw33p" in written
    assert b"val/recall@100" in written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methd": "grid"}, "unknown key 'methd'; did you mean 'method'?"),
        ({"job": "x"}, "unknown key 'job'"),
        ({"method": "gird"}, "method: found 'gird'; did you mean 'grid'?"),
        ({"metric": {"name": "val/recall@100"}}, "metric.goal: missing"),
        ({"metric": {"name": "val/x", "goal": "max"}}, "metric.goal: found 'max', expected maximize or minimize"),
        ({"metric": {"nam": "val/x", "goal": "maximize"}}, "unknown key 'metric.nam'; did you mean 'name'?"),
        ({"metric": "val/x"}, "metric: found 'val/x', expected the keys name, goal, target"),
        ({"metric": {"name": "test/recall@10", "goal": "maximize"}}, "because only the winner is tested"),
        ({"metric": {"name": "val/x", "goal": "maximize", "target": "1"}}, "metric.target: found '1'"),
        ({"parameters": {}}, "parameters: found {}, expected at least one"),
        ({"command": ["${program}", "${args}"]}, "Hydra takes KEY=value"),
        ({"command": ["${progam}", "${program}", "${args_no_hyphens}"]}, "${progam} is not known; did you mean '${pro"),
        ({"run_cap": 0}, "run_cap: found 0, expected a whole number of at least 1"),
        ({"early_terminate": {"type": "median"}}, "early_terminate.type: found 'median', expected hyperband"),
        ({"early_terminate": {"type": "hyperband"}}, "expected min_iter, or max_iter and s"),
        ({"early_terminate": {"type": "hyperband", "max_iter": 9}}, "expected min_iter, or max_iter and s"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1}}, "eta: found 1, expected a number above"),
        ({"early_terminate": {"type": "hyperband", "min_itr": 1}}, "did you mean 'min_iter'?"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "strict": 1}}, "strict: found 1"),
    ],
)  # fmt: skip
def test_errors_name_the_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_sweep(GOOD | change)
    assert message in str(error.value)


@pytest.mark.parametrize("key", ["program", "command", "method", "metric", "parameters"])
def test_errors_name_the_missing_key(key: str) -> None:
    with pytest.raises(UserError, match=f"^{key}: missing"):
        parse_sweep({name: value for name, value in GOOD.items() if name != key})


def test_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.yaml: not a readable YAML file"):
        read_sweep(tmp_path / "none.yaml")
    for text, message in (("a: [", "not a readable YAML file"), ("[]", "found \\[\\], expected the keys")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match=f"bad.yaml: .*{message}"):
            read_sweep(tmp_path / "bad.yaml")


def test_read() -> None:
    terminate = {"type": "hyperband", "max_iter": 27, "s": 2, "eta": 3, "strict": True}
    sweep = parse_sweep(GOOD | {"early_terminate": terminate, "run_cap": 5})
    assert (sweep.method, sweep.metric, sweep.maximize, sweep.target, sweep.run_cap) == (
        "random", "val/recall@100", True, None, 5,
    )  # fmt: skip
    assert sweep.hyperband == Hyperband(max_iter=27, s=2, eta=3, strict=True)
    # In order of names, as in W&B's grid.
    assert sweep.arguments({"model.dim": 8, "loss.logq": "off"}) == ["loss.logq=off", "model.dim=8"]
    more = sweep.with_more(["seed=1"], ["--config-dir", "my/conf"])
    assert more.command_line(["model.dim=8"]) == [
        "/usr/bin/env", sys.executable, "train.py", "+experiment=x", "model.dim=8", "seed=1", "--config-dir", "my/conf",
    ]  # fmt: skip
