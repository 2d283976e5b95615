"""Opening of a finished run: configuration, data and trained towers."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from recsys.core.errors import UserError
from recsys.core.stored_config import load_training
from recsys.core.trust import STORED
from recsys.data.batches.builder import BatchBuilder
from recsys.data.dataset import PreparedDataset
from recsys.experiments.assembly import build_model, corpus_of, open_data
from recsys.experiments.run_folder import METRICS, STATE, RunState, RunStatus, read_json, read_state
from recsys.models.blend import Model
from recsys.training.sharded_checkpoints import StoredTables, stored_tables

# Values that runs had before these keys existed. `stored_config` also moves keys that have another place now.
EARLIER: dict[str, Any] = {
    "warm_start": None,
    "members": {},
    "needs": [],
    "portions": False,
    "model": {
        "prior_shift": {"weight": 0.0, "half_life_days": 60, "power": 1.0},
        "new_items_offset": 0.0,
        "new_items_scale": 1.0,
        "new_items_lift": 0.0,
        "priors": {"age": False, "recency": False, "half_lives_days": [1, 4, 16], "lag_days": "auto"},
    },
    "history": {
        "gap_days": 0.0,
        "window_days": None,
        "half_life_days": None,
        "targets_since": 0.0,
        "action_weights": {},
        "max_exposures": 20,
        "order": "time",
    },
}


@dataclass(frozen=True)
class TrainedRun:
    """A finished run whose model has the weights of `checkpoints/best.ckpt`.

    Attributes:
        path: folder of the run.
        config: configuration of the run.
        dataset: data that the model was trained on; after `refit` validation events belong to training.
        model: trained model in evaluation mode.
        corpus: item_idx of the items that can be recommended.
        builder: builder of batches with the history length of the model.
        metrics: content of `metrics.json`.
        state: content of `run.json`.
    """

    path: Path
    config: DictConfig
    dataset: PreparedDataset
    model: Model
    corpus: npt.NDArray[np.int64]
    builder: BatchBuilder
    metrics: dict[str, float]
    state: RunState


def load_run(path: str | Path) -> TrainedRun:
    """Open a finished run folder.

    Raises:
        UserError: If there is no finished run, or its data has changed since it was trained.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"run: {path} is not a folder")
    state = read_state(path)
    if state.status != RunStatus.FINISHED:
        raise UserError(f"{path / STATE}: status is '{state.status}', expected 'finished'; run `recsys train` again")
    config = stored_config(path)
    dataset = open_data(config)
    if dataset.meta.fingerprint != state.dataset_fingerprint:
        raise UserError(
            f"{path / STATE}: trained on data {state.dataset_fingerprint}, but the source now gives "
            f"{dataset.meta.fingerprint}: the data has changed since"
        )
    if config.refit:
        dataset = dataset.refit()
    model = build_model(config, dataset, divided="on_disk")
    load_weights(model, path / "checkpoints/best.ckpt")
    model.set_item_bias(dataset, dataset.index_time("test"))
    builder = BatchBuilder(dataset, config.history.max_events, predict_first=config.history.predict_first)
    metrics = read_json(path / METRICS)
    return TrainedRun(path, config, dataset, model.eval(), corpus_of(model, dataset), builder, metrics, state)


def stored_config(path: Path, content: bytes | None = None) -> DictConfig:
    """Return the configuration of a run, with the values that the run had before a key existed; see `load_training`."""
    stored = load_training(path / "config.yaml", content)
    # Merged twice to keep the order of the file's keys.
    config = OmegaConf.merge(stored, EARLIER, stored)
    assert isinstance(config, DictConfig)
    config._set_flag(STORED, True)
    for tower in (config.user_tower, config.item_tower):
        # A tower of an outside package may have neither key.
        if "crossing" not in tower and "hidden" in tower:
            mlp = {"_target_": "recsys.models.crossing.MLP", "_partial_": True}
            tower.crossing = mlp | {"hidden": tower.pop("hidden"), "dropout": tower.pop("dropout", None)}
    return config


class Checkpoint(NamedTuple):
    """Weights of a model, by name, the number of training steps that led to them, and sharded tables, if any."""

    weights: dict[str, Tensor]
    steps: int
    tables: StoredTables | None = None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the weights of a model from a checkpoint, without what samplers and frequencies remember beside them.

    Raises:
        UserError: If the file is missing or not a checkpoint.
    """
    try:
        # Mapped, so that only what is used is in memory. Mapped values are not verified when they are read.
        _verify(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state, steps = content["state_dict"].items(), int(content["global_step"])
        tables = stored_tables(content, path)
    except UserError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable checkpoint ({error})") from error
    prefix = "model."
    weights = {name.removeprefix(prefix): value for name, value in state if name.startswith(prefix)}
    # Earlier versions stored the bias of items, which is computed when a model is built.
    kept = {name: value for name, value in weights.items() if not name.endswith("item_bias")}
    return Checkpoint(kept, steps, tables)


def _verify(path: Path) -> None:
    """Compare the content of a checkpoint with its checksums, block by block."""
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} is another one")


def load_weights(model: Model, checkpoint: Path) -> None:
    """Load the weights of a checkpoint into a model of the same shapes.

    Raises:
        UserError: If the file is not a checkpoint of such a model.
    """
    weights, _, tables = read_checkpoint(checkpoint)
    apart = set() if tables is None else {f"{name}.weight" for name in tables.shapes}
    try:
        found = model.load_state_dict(weights, strict=not apart)
        if wrong := {*found.missing_keys, *found.unexpected_keys} - apart:
            raise RuntimeError(f"keys that only one of them has: {', '.join(sorted(wrong))}")
        if tables is not None:
            tables.load_into(model)
    except (RuntimeError, AttributeError) as error:
        raise UserError(f"{checkpoint}: not a checkpoint of this configuration ({error})") from error
