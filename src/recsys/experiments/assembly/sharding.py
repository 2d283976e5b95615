"""Choice between id tables that every process holds and id tables whose rows are divided among processes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Literal

import torch
from lightning.pytorch.callbacks import WeightAveraging
from omegaconf import DictConfig

from recsys.core import distributed
from recsys.core.errors import UserError
from recsys.core.instantiate import class_of
from recsys.data.dataset import PreparedDataset
from recsys.models.sharded_table import INSTALL, Sharding, is_installed, require_torchrec

log = logging.getLogger("recsys")

Owner = Literal["item_tower", "user_tower"]
OWNERS: tuple[Owner, ...] = ("item_tower", "user_tower")
# Size of a table from which `sharding=auto` divides it among processes, if there are several. Training needs three
# times as much for a replicated table.
SHARDED_BYTES = 2 << 30


def choose_sharding(config: DictConfig, dataset: PreparedDataset) -> None:
    """Replace `sharding=auto` of both towers by the choice, which a run records.

    Raises:
        UserError: If a setting does not work with divided tables, or TorchRec is missing.
    """
    for owner in OWNERS:
        if "sharding" in config[owner]:
            config[owner].sharding = sharding_of(owner, config, dataset)
            if config[owner].sharding == "row_wise":
                if (fault := _fault(config)) is not None:
                    raise UserError(f"{owner}.sharding=row_wise: {fault}, or {owner}.sharding=replicated")
                require_torchrec(f"{owner}.sharding=row_wise")


def keep_replicated(variants: Mapping[str, DictConfig], *, started: Collection[str] = ()) -> None:
    """Choose replicated tables for variants, because one process embeds with all of them, and copies the best one.

    Args:
        variants: configurations by name.
        started: names of those that an earlier start has chosen for.

    Raises:
        UserError: If a variant asks for divided tables.
    """
    for name, config in variants.items():
        for owner in OWNERS:
            found = config[owner].get("sharding")
            if found == "row_wise":
                raise UserError(
                    f"variants.{name}: {owner}.sharding=row_wise: variants are compared by whole tables; expected "
                    f"{owner}.sharding=replicated, or one run without variants"
                )
            if found == "auto" and name not in started:
                config[owner].sharding = "replicated"


def sharding_of(owner: Owner, config: DictConfig, dataset: PreparedDataset) -> Sharding:
    """Return the place of the id table of a tower: `replicated` or `row_wise`.

    Raises:
        UserError: If the value is none of the three.
    """
    node = config[owner]
    found, key = node.sharding, f"{owner}.sharding"
    if found not in (None, "auto", "replicated", "row_wise"):
        raise UserError(f"{key}: found '{found}', expected auto, replicated or row_wise")
    if not node.get("use_id" if owner == "item_tower" else "use_user_id"):
        return "replicated"
    if found == "row_wise":
        return "row_wise"
    if found != "auto" or num_processes(config) == 1:
        return "replicated"
    capacity = (node.get("admission") or {}).get("capacity")
    if owner == "item_tower":
        num_bytes = 4 * config.model.dim * (capacity or dataset.num_trained)
    else:
        num_bytes = 4 * node.feature_width * (capacity or int((dataset.train_end > dataset.offsets[:-1]).sum()))
    if num_bytes < SHARDED_BYTES:
        return "replicated"
    fault = _fault(config)
    if fault is None and is_installed():
        return "row_wise"
    log.warning(
        "%s=auto: every process holds a table of %.1f GB; %s", key, num_bytes / 1e9, fault or f"to divide it: {INSTALL}"
    )
    return "replicated"


def reads_corpus(loss: DictConfig) -> bool:
    """Return whether every step of a loss computes the embeddings of all items."""
    return bool(class_of(loss).reads_corpus)


def num_processes(config: DictConfig) -> int:
    """Return the number of processes of a training: as configured, or as many as a launcher has started."""
    trainer = config.trainer
    devices, nodes = trainer.get("devices"), trainer.get("num_nodes", 1)
    if devices in ("auto", -1) and nodes != "auto" and distributed.world_size() == 1:
        # Lightning will start a process for each GPU.
        devices = 1 if trainer.get("accelerator") == "cpu" else max(torch.cuda.device_count(), 1)
    return devices * nodes if isinstance(devices, int) and isinstance(nodes, int) else distributed.world_size()


def _fault(config: DictConfig) -> str | None:
    """Return a setting that does not work with divided tables, and what it expects; None if there is none."""
    trainer = config.trainer
    if reads_corpus(config.loss):
        return "loss: reads the embeddings of all items in every step; expected loss=sampled_softmax"
    for name, node in config.callbacks.items():
        if node is not None and issubclass(class_of(node), WeightAveraging):
            return f"callbacks.{name}: an average of the weights needs whole tables; expected callbacks=default"
    if trainer.get("accumulate_grad_batches", 1) != 1:
        return "trainer.accumulate_grad_batches: rows are updated in every backward pass; expected 1"
    if str(trainer.get("precision", "32-true")).startswith("16"):
        return "trainer.precision: rows would be updated by scaled gradients; expected 32-true or bf16-mixed"
    return None
