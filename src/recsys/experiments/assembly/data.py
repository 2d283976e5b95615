"""Data of a configuration: raw tables, prepared data set and loaders."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf, open_dict

from recsys.core.errors import UserError
from recsys.core.instantiate import instantiate, plain
from recsys.core.stored_config import load_config
from recsys.core.suppression import frozen
from recsys.data.batches.datamodule import RetrievalData
from recsys.data.batches.targets import TargetSampling
from recsys.data.dataset import PreparedDataset
from recsys.data.preparation.from_config import configured_data
from recsys.data.sources import Tables
from recsys.experiments.assembly.objects import check_keys
from recsys.experiments.assembly.sharding import num_processes

HISTORY_KEYS = (
    "max_events",
    "predict_first",
    "horizon",
    "window_days",
    "gap_days",
    "half_life_days",
    "targets_since",
    "action_weights",
    "max_exposures",
    "order",
)


# Bounds of `batch_size=auto`: histories in a step, and steps in an epoch.
LEAST_BATCH, LEAST_STEPS = 8, 12


def open_data(config: DictConfig) -> PreparedDataset:
    """Prepare the data of a configuration, or open it if it is already prepared."""
    return configured_data(config).prepare(instantiate(config.data.engine))


def freeze_suppressed(config: DictConfig, path: Path) -> None:
    """Let a configuration name the list of forgotten users as it was when the run `path` began, or as it is now.

    A run keeps this list, so that it can be opened again when more users have been forgotten.
    """
    given = config.data.get("suppressed")
    files = [path / "config.yaml", *sorted(path.glob("variants/*/config.yaml"))]
    stored = next((load_config(file) for file in files if file.is_file()), None)
    fixed = frozen(given) if stored is None or given else stored.data.get("suppressed")
    with open_dict(config):
        config.data.pop("suppressed", None)
        if fixed is not None:
            config.data.suppressed = fixed


def source_of(config: DictConfig) -> Tables:
    """Return the raw tables of a configuration."""
    tables: Tables = instantiate(config.data.source).tables(Path(config.data.cache) / "sources")
    return tables


def build_data(config: DictConfig, dataset: PreparedDataset) -> RetrievalData:
    """Return the loaders of batches and requests, with the number of histories that `batch_size=auto` stands for.

    Raises:
        UserError: If a setting of the history or the batches is wrong.
    """
    check_keys(config.history, HISTORY_KEYS, name="history")
    _check_variety(config, dataset)
    least = {"history.max_events": 1, "history.max_exposures": 0, "clip_norm": 0}
    least |= {"batch_size": 1, "max_batch_size": 1, "trainer.check_val_every_n_epoch": 1, "trainer.devices": 1}
    least |= {} if config.evaluation.val_users is None else {"evaluation.val_users": 1}
    for key, lowest in least.items():
        found = OmegaConf.select(config, key)
        # Lightning also takes words and lists of devices.
        if isinstance(found, int | float) and not found >= lowest:
            or_null = ", or null for all" if key == "evaluation.val_users" else ""
            raise UserError(f"{key}: found {found}, expected at least {lowest}{or_null}")
    is_auto = config.batch_size == "auto"
    data = RetrievalData(
        dataset,
        max_history=config.history.max_events,
        batch_size=config.max_batch_size if is_auto else config.batch_size,
        predict_first=config.history.predict_first,
        target_sampling=target_sampling_of(config),
        max_exposures=config.history.max_exposures,
        val_users=config.evaluation.val_users,
        seed=config.seed,
        portions=config.portions,
    )
    # Before processes are started, which would wait for each other.
    data.check_processes(num_processes(config))
    # On small data an epoch of large batches has too few steps: training would stop early before it has learned much.
    while is_auto and data.batch_size > LEAST_BATCH and len(data.train_dataloader()) < LEAST_STEPS:
        data.batch_size = max(data.batch_size // 2, LEAST_BATCH)
    return data


def _check_variety(config: DictConfig, dataset: PreparedDataset) -> None:
    """Refuse training events of one user or of one item, from which nothing can be told apart."""
    trained_users = np.flatnonzero(dataset.train_end > dataset.offsets[:-1])
    columns = config.data.columns
    for key, num in (("user_id", len(trained_users)), ("item_id", dataset.num_trained)):
        if num == 1:
            # Ids are read only for the message.
            ids, first = (dataset.user_ids, int(trained_users[0])) if key == "user_id" else (dataset.item_ids, 0)
            column = columns.get(key) or key
            raise UserError(
                f"column '{column}' of the interactions: every training event has {ids[first].as_py()!r}, expected "
                f"several; data.columns.{key} names another column"
            )


def target_sampling_of(config: DictConfig) -> TargetSampling:
    """Return the rule that chooses and weights training targets."""
    names = (field.name for field in dataclasses.fields(TargetSampling))
    return TargetSampling(**{name: plain(config.history)[name] for name in names})
