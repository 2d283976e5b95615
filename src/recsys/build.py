"""The only place that builds objects from configuration, and hands them what exists at run time alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from hydra.errors import InstantiationException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from recsys.data.datamodule import RetrievalData
from recsys.data.dataset import Part, PreparedDataset
from recsys.data.prepare import DataSettings, prepare
from recsys.data.sources import Tables
from recsys.data.synthetic import Synthetic, best_reachable
from recsys.errors import UserError, nearest
from recsys.evaluation.metrics import CUTOFFS, NAMES
from recsys.evaluation.slices import ITEM_SLICES, USER_SLICES
from recsys.frequency import prior_shift, target_probabilities
from recsys.losses import FullSoftmax
from recsys.models.pretrained import PretrainedItems
from recsys.models.two_tower import TwoTower
from recsys.module import RetrievalModule
from recsys.negatives import Catalogue

# Id tables from this size on are updated by rows: a dense step costs what the table holds.
MODEL_KEYS = ("dim", "similarity", "temperature", "learn_temperature", "prior_shift")
HISTORY_KEYS = ("max_events", "predict_first", "horizon", "gap_days", "half_life_days", "order")
SPARSE_ROWS = 100_000


def instantiate(node: DictConfig, **settings: Any) -> Any:
    """The object that a node names; a wrong key or value is a `UserError`."""
    try:
        return hydra.utils.instantiate(node, **settings)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"{node.get('_target_')}: {cause or error}") from error


def complete(partial: Any, **runtime: Any) -> Any:
    """Call what a `_partial_` node gave with run-time arguments; a wrong value is a `UserError`."""
    try:
        return partial(**runtime)
    except (TypeError, ValueError, MisconfigurationException) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{partial.func.__module__}.{partial.func.__qualname__}: {error}") from error


def open_data(config: DictConfig) -> PreparedDataset:
    """Prepare the data of a configuration, or reuse what is prepared."""
    data = config.data
    settings = DataSettings(
        time=data.time,
        columns=_plain(data.columns),
        features=_plain(data.features),
        min_user_events=data.min_user_events,
        min_item_events=data.min_item_events,
    )
    source, split, engine = instantiate(data.source), instantiate(config.split), instantiate(data.engine)
    return prepare(source, split, settings, Path(data.cache), engine)


def source_of(config: DictConfig) -> Tables:
    """The raw tables of a configuration."""
    tables: Tables = instantiate(config.data.source).tables(_sources(config))
    return tables


def reachable(config: DictConfig, dataset: PreparedDataset, part: Part) -> dict[str, float]:
    """`recall@K` of ranking by the truth where the data is simulated, else nothing."""
    source = instantiate(config.data.source)
    if not isinstance(source, Synthetic) or dataset.meta.time != "seconds":
        return {}
    return best_reachable(source.folder(_sources(config)), dataset, part)


def build_data(config: DictConfig, dataset: PreparedDataset) -> RetrievalData:
    """Loaders."""
    _check_keys(config.history, HISTORY_KEYS, "history")
    if config.history.max_events < 1:
        raise UserError(f"history.max_events: found {config.history.max_events}, expected at least 1")
    if config.history.horizon < 1:
        raise UserError(f"history.horizon: found {config.history.horizon}, expected at least 1")
    if config.history.gap_days < 0:
        raise UserError(f"history.gap_days: found {config.history.gap_days}, expected 0 or more")
    half_life = config.history.half_life_days
    if half_life is not None and half_life <= 0:
        raise UserError(f"history.half_life_days: found {half_life}, expected a positive number, or null")
    if config.history.order not in ("time", "random"):
        raise UserError(f"history.order: found '{config.history.order}', expected 'time' or 'random'")
    if config.batch_size < 1:
        raise UserError(f"batch_size: found {config.batch_size}, expected at least 1")
    return RetrievalData(
        dataset,
        max_history=config.history.max_events,
        batch_size=config.batch_size,
        predict_first=config.history.predict_first,
        horizon=config.history.horizon,
        gap_days=config.history.gap_days,
        half_life_days=half_life,
        order=config.history.order,
        val_users=config.evaluation.val_users,
        seed=config.seed,
    )


def build_model(config: DictConfig, dataset: PreparedDataset, fresh: bool = True) -> TwoTower:
    """Both towers, initialised from the seed.

    Args:
        config: composed from `conf/train.yaml`.
        dataset: to train on.
        fresh: whether they are to be trained; if not, what is pretrained is left to the checkpoint that is to come.
    """
    _check_keys(config.model, MODEL_KEYS, "model")
    _check_keys(config.model.prior_shift, ("weight", "half_life_days"), "model.prior_shift")
    L.seed_everything(config.seed, verbose=False)
    sparse = config.item_tower.sparse
    if sparse == "auto":
        whole_table = config.loss["_target_"].endswith("FullSoftmax")
        sparse = bool(dataset.num_trained >= SPARSE_ROWS and not whole_table)
    model = config.model
    try:
        towers = TwoTower(
            user_tower=complete(instantiate(config.user_tower), dataset=dataset),
            item_tower=complete(instantiate(config.item_tower), dataset=dataset, sparse=sparse),
            similarity=model.similarity,
            temperature=model.temperature,
            learn_temperature=model.learn_temperature,
            item_bias=_item_bias(config, dataset),
        )
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError(f"model: {error}") from error
    for module in towers.modules():
        if fresh and isinstance(module, PretrainedItems):
            module.fill(dataset)
    return towers


def _item_bias(config: DictConfig, dataset: PreparedDataset) -> Tensor | None:
    shift = config.model.prior_shift
    if not shift.weight:
        return None
    for name, low in (("weight", 0), ("half_life_days", 0)):
        if shift[name] is None or shift[name] <= low:
            raise UserError(f"model.prior_shift.{name}: found {shift[name]}, expected a positive number")
    bias = prior_shift(dataset, shift.half_life_days, config.history.half_life_days)
    return bias.mul(shift.weight).float()


def corpus_of(model: TwoTower, dataset: PreparedDataset) -> npt.NDArray[np.int64]:
    """item_idx of the items that the model can recommend."""
    tower = model.item_tower
    corpus = dataset.corpus(reads_features=tower.reads_features, reads_ids=tower.reads_ids)
    if not len(corpus):
        raise UserError("the corpus is empty: no item has a trained id or a feature that the item tower reads")
    return corpus


def build_module(
    config: DictConfig, dataset: PreparedDataset, model: TwoTower, schedule_steps: int | None = None
) -> RetrievalModule:
    """The training step of a configuration."""
    corpus = torch.from_numpy(corpus_of(model, dataset))
    loss = instantiate(config.loss)
    negatives = None
    if config.negatives["_target_"] is not None:
        probabilities = target_probabilities(dataset, config.history.predict_first)
        negatives = complete(instantiate(config.negatives), catalogue=Catalogue(probabilities, corpus))
    if isinstance(loss, FullSoftmax) and negatives is not None:
        raise UserError("loss=full_softmax ranges over the whole corpus: add negatives=none")
    if not isinstance(loss, FullSoftmax) and negatives is None:
        raise UserError("negatives=none goes with loss=full_softmax only; this loss needs negatives to sample")
    return RetrievalModule(
        model,
        loss,
        negatives,
        instantiate(config.optimizer),
        corpus,
        clip_norm=config.clip_norm,
        seed=config.seed,
        schedule_steps=schedule_steps,
    )


def build_callbacks(config: DictConfig, checkpoints: Path) -> list[L.Callback]:
    """Callbacks; those that write are told where."""
    of_slices = (f"{name}/recall" for name in (*ITEM_SLICES, *USER_SLICES))
    names = [f"val/{name}@{cutoff}" for name in (*NAMES, "coverage", *of_slices) for cutoff in CUTOFFS]
    if config.evaluation.metric not in names:
        raise UserError(
            f"evaluation.metric: found '{config.evaluation.metric}'{nearest(config.evaluation.metric, names)}"
        )
    callbacks = []
    for node in config.callbacks.values():
        callback = instantiate(node)
        callbacks.append(complete(callback, dirpath=checkpoints) if node.get("_partial_") else callback)
    return callbacks


def _sources(config: DictConfig) -> Path:
    return Path(config.data.cache) / "sources"


def _check_keys(node: DictConfig, valid: tuple[str, ...], name: str) -> None:
    for key in map(str, node):
        if key not in valid:
            raise UserError(f"unknown configuration key '{name}.{key}'{nearest(key, valid)}")


def _plain(node: DictConfig) -> Any:
    return OmegaConf.to_container(node, resolve=True)
