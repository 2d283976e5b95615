"""Two nodes of torchrun train as one process does, and refuse a start on which they do not agree."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import slurm
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from omegaconf import DictConfig, OmegaConf
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from worlds import compose, write_world

from recsys.cli.main import main
from recsys.core.errors import UserError
from recsys.experiments import processes
from recsys.experiments.assembly.sharding import num_processes
from recsys.experiments.processes import join, launched, trainer_settings
from recsys.experiments.train import train

# Without what processes draw from streams of their own.
FIXED = [
    "split=leave_last_out", "model.dim=8", "history.max_events=6", "batch_size=24", "user_tower.encoder.num_blocks=1",
    "user_tower.encoder.dropout=0", "user_tower.unknown_rate=0", "item_tower=ids", "item_tower.sparse=true",
    "negatives=mixed", "negatives.num_negatives=20", "trainer.max_epochs=2", "trainer.log_every_n_steps=1",
    "+trainer.enable_progress_bar=false", "logger=csv", "evaluation.baselines=false",
]  # fmt: skip


def command(folder: Path, run: str, *overrides: str) -> list[str]:
    """A training of two epochs. The data of each node has a folder, and the other's content."""
    data = ["data=parquet", f"data.root={folder}/data", f"data.cache={folder}/cache"]
    return ["train", *data, *FIXED, f"hydra.run.dir={folder}/{run}", *overrides]


def ended(words: Sequence[str]) -> str:
    """Return the errors of a command."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.suppress(SystemExit):
        main(list(words))
    return errors.getvalue()


def refused(folder: Path, rank: int, config: DictConfig) -> dict[str, str]:
    """Return the errors of starts on which this process and the other one do not agree."""
    own, run = folder / f"node{rank}", folder / "refused"

    def error(start: Callable[[DictConfig, Path], object], path: Path, change: dict[str, object]) -> str:
        changed = config.copy()
        for key, value in change.items():
            OmegaConf.update(changed, key, value)
        with pytest.raises(UserError) as error:
            start(changed, path)
        return str(error.value)

    found = {
        "folders": error(join, own, {}),
        "settings": error(join, run, {"optimizer.lr": rank / 10}),
        "trainer": error(join, run, {"trainer.num_nodes": 1, "trainer.devices": 1}),
    }
    with pytest.MonkeyPatch.context() as patch:
        if rank:
            # Its machine has a folder of the same name.
            exists = Path.exists
            patch.setattr(Path, "exists", lambda path: exists(path) and run not in path.parents)
        found["storage"] = error(join, run, {})
    # The same command, where a path has other files on another machine.
    places = {"data.root": str(own / "data"), "data.cache": str(own / "cache")}
    found["data"] = error(train, run, places)
    found["files"] = error(train, run, places | ({"data.root": str(own / "lost")} if rank else {}))
    return found


def node(folder: Path, port: int, config: DictConfig) -> None:
    """Run the agent that `torchrun` runs; processes are forks, because imports would take longer than the training."""
    settings = LaunchConfig(
        min_nodes=2, max_nodes=2, nproc_per_node=1, rdzv_backend="c10d", rdzv_endpoint=f"127.0.0.1:{port}",
        run_id="test", start_method="fork", monitor_interval=0.05, max_restarts=0,
    )  # fmt: skip
    elastic_launch(settings, worker)(folder, config)


def worker(folder: Path, config: DictConfig) -> None:
    rank = int(os.environ["RANK"])
    try:
        processes._VISIBLE_SECONDS = 0.0
        found: dict[str, Any] = {"refused": refused(folder, rank, config)}
        found["refused"]["command"] = ended(command(folder, "refused", "trainer=multinode", f"seed={rank}"))
        found["trained"] = ended(command(folder, "two", "trainer=multinode"))
        (folder / f"{rank}.json").write_text(json.dumps(found))
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        raise


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("nodes")
    write_world(folder / "data")
    # Each process hides other values of features.
    for table in ("items", "users"):
        (folder / f"data/{table}.parquet").unlink()
    for rank in range(2):
        write_world(folder / f"node{rank}/data", seed=rank)
    assert ended(command(folder, "one")) == ""
    config = compose("train", command(folder, "refused", "trainer=multinode")[1:])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    agents = [context.Process(target=node, args=(folder, port, config)) for _ in range(2)]
    for agent in agents:
        agent.start()
    for agent in agents:
        agent.join(240)
    errors = [file.read_text() for file in folder.glob("*.error")]
    assert not errors, errors
    assert [agent.exitcode for agent in agents] == [0, 0]
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("folders", "hydra.run.dir: process 0 has {0}/node0, process 1 has {0}/node1; expected one folder on storage"),
        ("settings", "optimizer.lr: process 0 has 0.0, process 1 has 0.1; expected the same command on every machine"),
        ("command", "error: seed: process 0 has 0, process 1 has 1; expected the same command on every machine\n"),
        ("trainer", "trainer.devices=1, trainer.num_nodes=1: the launcher started 2 processes (WORLD_SIZE)"),
        (
            "storage",
            "hydra.run.dir={0}/refused: process 1 on {1} does not see the files of process 0; expected a folder",
        ),
        ("data", "data, fingerprint of the data: process 0 has "),
        ("files", "/node1/lost"),
    ],
)
def test_refused_before_training(case: str, message: str, outcome: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, found = outcome
    for process in found:
        assert message.format(folder, socket.gethostname()) in process["refused"][case]
    assert not (folder / "refused/run.json").exists()


@pytest.mark.slow
def test_two_nodes_equal_one_process(outcome: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, found = outcome
    assert [process["trained"] for process in found] == ["", ""]
    one, two = (losses(folder / run) for run in ("one", "two"))
    assert len(one) > 6
    assert two == pytest.approx(one, rel=1e-5)
    first, second = (json.loads((folder / run / "metrics.json").read_text()) for run in ("one", "two"))
    assert second == pytest.approx(first, abs=1e-3)
    state = json.loads((folder / "two/run.json").read_text())
    assert state["status"] == "finished"


@pytest.mark.slow
@pytest.mark.skipif(not slurm.is_installed(), reason="needs root, slurm-wlm and munge")
def test_two_nodes_of_slurm_equal_one_process(
    outcome: tuple[Path, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = outcome
    words = [word for word in command(folder, "slurm") if not word.startswith("hydra.run.dir")]
    jobs = ["hydra/launcher=submitit_slurm", "hydra.launcher.nodes=2", f"hydra.sweep.dir={folder}/slurm"]
    with slurm.cluster(folder / "cluster") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        # Both nodes are this host, which has no address of their names.
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        # submitit warns that this cluster keeps no accounts.
        assert "error: " not in ended([*words, "-m", *jobs, "trainer=multinode"])
    assert losses(folder / "slurm/0") == pytest.approx(losses(folder / "one"), rel=1e-5)
    assert json.loads((folder / "slurm/0/run.json").read_text())["status"] == "finished"


def losses(run: Path) -> list[float]:
    with (run / "logs/0/metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set variables of a launcher, and forget them and those that are made of them."""

    usual = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}

    def change(**variables: str) -> None:
        monkeypatch.setattr(os, "environ", usual | variables)

    return change


SRUN = {
    "SLURM_JOB_ID": "123456", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "4", "SLURM_STEP_NODELIST": "gpu[03,07-09]",
}  # fmt: skip


def test_srun_is_read_as_torchrun(environment: Callable[..., None]) -> None:
    environment(**SRUN)
    trainer = compose("train", ["trainer=multinode"]).trainer
    assert launched(trainer) == (8, 2)
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [os.environ[name] for name in names] == ["5", "1", "2", "8", "gpu03", "18456"]
    environment(**SRUN, MASTER_ADDR="10.0.0.1", MASTER_PORT="29500")
    launched(trainer)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.0.0.1", "29500")


def test_processes_of_a_trainer(environment: Callable[..., None]) -> None:
    several, one = compose("train", ["trainer=multinode"]), compose("train", [])
    environment(**SRUN)
    settings = trainer_settings(several)
    assert (settings["devices"], settings["num_nodes"]) == (2, 4)
    assert settings["plugins"][0].global_rank() == 5
    # A command that opens the run later.
    environment()
    assert trainer_settings(several) == {"devices": 1, "num_nodes": 1, "plugins": []}
    assert trainer_settings(one) == {"plugins": []}
    # A batch script that runs the command without srun.
    environment(SLURM_NTASKS="8", SLURM_JOB_ID="1")
    (plugin,) = trainer_settings(one)["plugins"]
    assert plugin.global_rank() == 0


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], 1),
        (["trainer=ddp"], 2),
        (["trainer=gpus"], 4),
        (["trainer=gpus", "trainer.devices=-1"], 4),
        (["trainer=multinode"], 1),
        (["trainer.devices=auto"], 1),
    ],
)
def test_number_of_processes_before_they_start(
    overrides: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert num_processes(compose("train", overrides)) == expected


@pytest.mark.parametrize(
    "variables",
    [SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"}, {"RANK": "0", "WORLD_SIZE": "1"}],
    ids=["a shell that srun started", "a job of one process"],
)
def test_one_process_of_a_launcher_may_start_others(
    variables: dict[str, str], environment: Callable[..., None], tmp_path: Path
) -> None:
    environment(**variables)
    config = compose("train", ["trainer=ddp"])
    join(config, tmp_path)
    plugins = trainer_settings(config)["plugins"] or [LightningEnvironment()]
    assert not plugins[0].creates_processes_externally


@pytest.mark.parametrize(
    ("variables", "overrides", "message"),
    [
        ({}, ["trainer=multinode"], "trainer=multinode: found no launcher"),
        (SRUN, [], "trainer.devices=1, trainer.num_nodes=1: the launcher started 8 processes"),
        (
            SRUN,
            ["trainer=ddp", "+trainer.num_nodes=2"],
            "trainer.devices=2, trainer.num_nodes=2: the launcher started 8",
        ),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "9"}, ["trainer=multinode"], "9 processes, of which this machine has 2"),
    ],
)
def test_refused_without_the_others(
    variables: dict[str, str], overrides: list[str], message: str, environment: Callable[..., None], tmp_path: Path
) -> None:
    environment(**variables)
    with pytest.raises(UserError, match=message):
        join(compose("train", overrides), tmp_path)
