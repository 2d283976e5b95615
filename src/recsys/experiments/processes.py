"""Start-up of training by processes that a launcher has started: they meet, and must agree before they train."""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from recsys.core import distributed
from recsys.core.errors import UserError
from recsys.experiments.run_folder import config_differences

# Libraries of communication with GPUs: metrics are counted on the host.
GPUS = "cpu:gloo,cuda:nccl"
# Seconds within which a file on shared storage must become visible on another machine.
_VISIBLE_SECONDS = 10.0
# Variables of torchrun, which Ray and Kubernetes operators set too, and those of srun.
_OF_SRUN = {
    "RANK": "SLURM_PROCID",
    "LOCAL_RANK": "SLURM_LOCALID",
    "GROUP_RANK": "SLURM_NODEID",
    "WORLD_SIZE": "SLURM_STEP_NUM_TASKS",
}


class Launch(NamedTuple):
    """Processes that a launcher has started: all, and those of each machine."""

    world: int
    local: int


def launched(trainer: DictConfig) -> Launch | None:
    """Return what a launcher has started; None if this process is alone, or Lightning starts the others.

    The variables of srun are translated into those of torchrun. One process that `trainer` does not expect from a
    launcher, such as a shell in a SLURM job, keeps its variables: with LOCAL_RANK Lightning would start no others.
    """
    found = os.environ
    is_srun = "RANK" not in found and "SLURM_STEP_NUM_TASKS" in found
    world = found.get("SLURM_STEP_NUM_TASKS" if is_srun else "WORLD_SIZE")
    if not (is_srun or "RANK" in found) or world is None or (world == "1" and trainer.get("num_nodes") != "auto"):
        return None
    if is_srun:
        found |= {name: found[other] for name, other in _OF_SRUN.items()}
        found["LOCAL_WORLD_SIZE"] = str(int(world) // int(found["SLURM_STEP_NUM_NODES"]))
        nodes = found.get("SLURM_STEP_NODELIST", "127.0.0.1")
        found.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
        found.setdefault("MASTER_PORT", str(15000 + int(found["SLURM_JOB_ID"]) % 10000))
    found.setdefault("LOCAL_RANK", "0")
    return Launch(int(world), int(found.get("LOCAL_WORLD_SIZE", 1)))


def trainer_settings(config: DictConfig) -> dict[str, Any]:
    """Return the arguments of the trainer that depend on the launcher: `devices`, `num_nodes` and `plugins`.

    A configuration with `num_nodes: auto` that no launcher started, such as that of a run which another command opens,
    gets one process.
    """
    launch = launched(config.trainer)
    settings: dict[str, Any] = {"plugins": []}
    if launch is not None:
        settings["plugins"] = [TorchElasticEnvironment()]
    elif "SLURM_NTASKS" in os.environ:
        # A batch script without srun, or a shell: Lightning would wait for tasks that nobody starts.
        settings["plugins"] = [LightningEnvironment()]
    if config.trainer.get("num_nodes") == "auto":
        world, local = launch or (1, 1)
        settings |= {"devices": local, "num_nodes": world // local}
    return settings


def join(config: DictConfig, path: Path) -> None:
    """Meet the other processes of the launcher, and refuse a start on which they do not agree.

    Args:
        config: configuration of `recsys train`.
        path: folder of the run.

    Raises:
        UserError: If the trainer asks for other processes than there are, or the processes have different
            configurations or folders, or do not share the folder. Every process raises it.
    """
    trainer = config.trainer
    launch = launched(trainer)
    devices, nodes = trainer.get("devices"), trainer.get("num_nodes", 1)
    if nodes == "auto":
        if launch is None:
            raise UserError(
                "trainer=multinode: found no launcher (RANK and WORLD_SIZE are not set), expected torchrun, srun, Ray "
                "or a JobSet; on one machine type trainer=ddp trainer.devices=N"
            )
        if launch.world % launch.local:
            raise UserError(
                f"trainer=multinode: found {launch.world} processes, of which this machine has {launch.local}; "
                "expected as many on every machine"
            )
    elif launch is not None and devices != "auto" and _number(devices) * nodes != launch.world:
        raise UserError(
            f"trainer.devices={devices}, trainer.num_nodes={nodes}: the launcher started {launch.world} processes "
            "(WORLD_SIZE); expected trainer=multinode"
        )
    if launch is None:
        return
    rank_zero_only.rank = int(os.environ["RANK"])  # type: ignore[attr-defined]
    if not dist.is_initialized():
        on_gpus = trainer.get("accelerator") != "cpu" and torch.cuda.is_available()
        usual = GPUS if on_gpus else "gloo"
        dist.init_process_group(OmegaConf.select(trainer, "strategy.process_group_backend") or usual)
        atexit.register(_leave)
    _agree("hydra.run.dir", str(path.absolute()), "one folder on storage that all machines share: hydra.run.dir=DIR")
    _check_configs(config)
    _check_shared(path)


def check_same_data(fingerprint: str, place: Any) -> None:
    """Refuse processes with different data.

    Args:
        fingerprint: fingerprint of the prepared data.
        place: `data.root`.

    Raises:
        UserError: If fingerprints differ.
    """
    _agree(f"data.root={place}, fingerprint of the data", fingerprint, "the same files on every machine")


@contextmanager
def unanimous() -> Iterator[None]:
    """Run a block without communication; if it fails in one process, it fails in all.

    Raises:
        UserError: In the processes without an error of their own.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    messages = distributed.share(None if failure is None else str(failure))
    if failure is not None:
        raise failure
    for rank, message in enumerate(messages):
        if message is not None:
            raise UserError(f"process {rank}: {message}")


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _number(devices: Any) -> int:
    return devices if isinstance(devices, int) else len(devices)


def _agree(key: str, value: str, expected: str) -> None:
    values = distributed.share(value)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise UserError(f"{key}: process 0 has {values[0]}, process {rank} has {other}; expected {expected}")


def _check_configs(config: DictConfig) -> None:
    everyones = distributed.share(OmegaConf.to_container(config, resolve=True))
    for rank, other in enumerate(everyones):
        for key, first, own in config_differences(everyones[0], other):
            raise UserError(
                f"{key}: process 0 has {first}, process {rank} has {own}; expected the same command on every machine"
            )


def _check_shared(path: Path) -> None:
    """Refuse a folder whose files are not visible to all processes."""
    token = path / f".{distributed.share(secrets.token_hex(8))[0]}"
    with unanimous():
        if distributed.is_first():
            path.mkdir(parents=True, exist_ok=True)
            token.touch()
    deadline = time.monotonic() + _VISIBLE_SECONDS
    # A network file system may show a new file late.
    while not (is_seen := token.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    machines = distributed.share(None if is_seen else socket.gethostname())
    token.unlink(missing_ok=True)
    for rank, machine in enumerate(machines):
        if machine is not None:
            raise UserError(
                f"hydra.run.dir={path}: process {rank} on {machine} does not see the files of process 0; expected a "
                "folder on storage that all machines share"
            )
