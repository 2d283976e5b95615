"""The only place that builds objects from configuration, and hands them what exists at run time alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
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
from recsys.data.objective import Objective
from recsys.data.prepare import DataSettings, prepare
from recsys.data.sources import Tables
from recsys.data.synthetic import Synthetic, best_reachable
from recsys.errors import UserError, nearest
from recsys.evaluation.metrics import CUTOFFS, NAMES
from recsys.evaluation.slices import ITEM_SLICES, USER_SLICES
from recsys.frequency import Exact, Frequency, prior_shift, target_probabilities
from recsys.losses import GBCE, FullSoftmax
from recsys.models.blend import Blend, Member, Model
from recsys.models.items import ItemTower
from recsys.models.pretrained import PretrainedItems
from recsys.models.towers import UserTower
from recsys.models.two_tower import TwoTower
from recsys.module import RetrievalModule
from recsys.negatives import Catalogue, NegativeSampler, Uniform

# `recsys.negatives.NearestItems` of a data set and its corpus: both, then a run folder and k.
Miner = Callable[[PreparedDataset, Tensor, str, int], Tensor]

# Id tables from this size on are updated by rows: a dense step costs what the table holds.
MODEL_KEYS = ("dim", "similarity", "temperature", "learn_temperature", "prior_shift")
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
SPARSE_ROWS = 100_000


def instantiate(node: DictConfig, **settings: Any) -> Any:
    """The object that a node names; a wrong key or value is a `UserError`."""
    # Hydra leaves out of a partial what is still to be given.
    for key in OmegaConf.missing_keys(node):
        place = node._get_full_key(key)
        raise UserError(f"{place}: missing, expected {place}=...")
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
        engaged=data.get("engaged"),
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
    if config.history.max_exposures < 0:
        raise UserError(f"history.max_exposures: found {config.history.max_exposures}, expected 0 or more")
    if config.batch_size < 1:
        raise UserError(f"batch_size: found {config.batch_size}, expected at least 1")
    return RetrievalData(
        dataset,
        max_history=config.history.max_events,
        batch_size=config.batch_size,
        predict_first=config.history.predict_first,
        objective=objective_of(config),
        max_exposures=config.history.max_exposures,
        val_users=config.evaluation.val_users,
        seed=config.seed,
    )


def objective_of(config: DictConfig) -> Objective:
    """What training targets are, and what they count."""
    names = (field.name for field in dataclasses.fields(Objective))
    return Objective(**{name: _plain(config.history)[name] for name in names})


def build_model(config: DictConfig, dataset: PreparedDataset) -> Model:
    """The model of a run that is trained, for its weights to be loaded into: two towers, or a blend of several."""
    if not config.members:
        return build_towers(config, dataset, fresh=False)
    members = [
        Member(build_towers(member.config, dataset, fresh=False), member.weight, member.config.history.max_events)
        for member in config.members.values()
    ]
    return Blend(members, _item_bias(config, dataset))


def build_towers(config: DictConfig, dataset: PreparedDataset, fresh: bool = True) -> TwoTower:
    """Both towers, initialised from the seed.

    Args:
        config: composed from `conf/train.yaml`.
        dataset: to train on.
        fresh: whether they are to be trained; if not, what is pretrained is left to the checkpoint that is to come.
    """
    _check_keys(config.model, MODEL_KEYS, "model")
    _check_keys(config.model.prior_shift, ("weight", "half_life_days", "power"), "model.prior_shift")
    L.seed_everything(config.seed, verbose=False)
    model = config.model
    try:
        towers = TwoTower(
            user_tower=_user_tower(config, dataset),
            item_tower=_item_tower(config, dataset),
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


def _user_tower(config: DictConfig, dataset: PreparedDataset) -> UserTower:
    runtime: dict[str, Any] = {"dataset": dataset}
    if "own_items" in config.user_tower:
        runtime["own_items"] = _item_tower(config, dataset) if config.user_tower.own_items else None
    tower: UserTower = complete(instantiate(config.user_tower), **runtime)
    return tower


def _item_tower(config: DictConfig, dataset: PreparedDataset) -> ItemTower:
    sparse = config.item_tower.sparse
    if sparse == "auto":
        whole_table = config.loss["_target_"].endswith("FullSoftmax")
        sparse = bool(dataset.num_trained >= SPARSE_ROWS and not whole_table)
    tower: ItemTower = complete(instantiate(config.item_tower), dataset=dataset, sparse=sparse)
    return tower


def _item_bias(config: DictConfig, dataset: PreparedDataset) -> Tensor | None:
    shift = config.model.prior_shift
    if not shift.weight:
        return None
    for name, low in (("weight", 0), ("half_life_days", 0), ("power", 0)):
        if shift[name] is None or shift[name] <= low:
            raise UserError(f"model.prior_shift.{name}: found {shift[name]}, expected a positive number")
    bias = prior_shift(dataset, shift.half_life_days, objective_of(config), shift.power)
    return bias.mul(shift.weight).float()


def corpus_of(model: Model, dataset: PreparedDataset) -> npt.NDArray[np.int64]:
    """item_idx of the items that the model can recommend."""
    corpus = dataset.corpus(reads_features=model.reads_features, reads_ids=model.reads_ids)
    if not len(corpus):
        raise UserError("the corpus is empty: no item has a trained id or a feature that the item tower reads")
    return corpus


def build_module(
    config: DictConfig,
    dataset: PreparedDataset,
    model: TwoTower,
    schedule_steps: int | None = None,
    mine: Miner | None = None,
) -> RetrievalModule:
    """The training step of a configuration.

    Args:
        config: composed from `conf/train.yaml`.
        dataset: to train on.
        model: both towers.
        schedule_steps: length of the schedule; null for the steps that the trainer will make.
        mine: finds neighbours in an earlier run, for negatives that want them.
    """
    corpus = torch.from_numpy(corpus_of(model, dataset))
    loss = instantiate(config.loss)
    if config.loss.get("_partial_"):
        loss = complete(loss, num_items=len(corpus))
    negatives = _build_negatives(config, dataset, model, corpus, mine)
    if isinstance(loss, FullSoftmax) and negatives is not None:
        raise UserError("loss=full_softmax ranges over the whole corpus: add negatives=none")
    if not isinstance(loss, FullSoftmax) and negatives is None:
        raise UserError("negatives=none goes with loss=full_softmax only; this loss needs negatives to sample")
    if isinstance(loss, GBCE) and not isinstance(negatives, Uniform):
        raise UserError("loss=gbce is calibrated for uniform draws: add negatives=uniform")
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


def _build_negatives(
    config: DictConfig, dataset: PreparedDataset, model: TwoTower, corpus: Tensor, mine: Miner | None
) -> NegativeSampler | None:
    probabilities = target_probabilities(dataset, config.history.predict_first)
    frequency: Frequency = instantiate(config.frequency)
    if config.frequency.get("_partial_"):
        frequency = complete(frequency, probabilities=probabilities)
    negatives: NegativeSampler | None = None
    if config.negatives["_target_"] is not None:
        catalogue = Catalogue(probabilities, corpus, frequency, model.item_tower.dim)
        if mine is not None:
            catalogue = catalogue._replace(nearest_items=partial(mine, dataset, corpus))
        negatives = complete(instantiate(config.negatives), catalogue=catalogue)
    if not isinstance(frequency, Exact) and (negatives is None or negatives.frequency is None):
        raise UserError(
            "frequency: these negatives are no targets of batches, so their probabilities are known; "
            "expected frequency=exact with them"
        )
    return negatives


def build_callbacks(config: DictConfig, checkpoints: Path) -> list[L.Callback]:
    """Callbacks; those that write are told where."""
    check_metric(config.evaluation.metric)
    callbacks = []
    for node in config.callbacks.values():
        callback = instantiate(node)
        callbacks.append(complete(callback, dirpath=checkpoints) if node.get("_partial_") else callback)
    return callbacks


def check_metric(metric: str) -> None:
    """Refuse a name that is no metric of validation."""
    of_slices = (f"{name}/recall" for name in (*ITEM_SLICES, *USER_SLICES))
    names = [f"val/{name}@{cutoff}" for name in (*NAMES, "coverage", *of_slices) for cutoff in CUTOFFS]
    if metric not in names:
        raise UserError(f"evaluation.metric: found '{metric}'{nearest(metric, names)}")


def _sources(config: DictConfig) -> Path:
    return Path(config.data.cache) / "sources"


def _check_keys(node: DictConfig, valid: tuple[str, ...], name: str) -> None:
    for key in map(str, node):
        if key not in valid:
            raise UserError(f"unknown configuration key '{name}.{key}'{nearest(key, valid)}")


def _plain(node: DictConfig) -> Any:
    return OmegaConf.to_container(node, resolve=True)
