"""Model of a configuration: two towers, or a blend of several."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from omegaconf import DictConfig
from torch import Tensor

from recsys.core.errors import UserError
from recsys.core.instantiate import class_of, instantiate, named_fault
from recsys.core.schema import UNKNOWN_ITEM
from recsys.data.content_encoders import CACHE
from recsys.data.dataset import PreparedDataset
from recsys.experiments.assembly.data import target_sampling_of
from recsys.experiments.assembly.objects import check_keys, complete
from recsys.experiments.assembly.sharding import reads_corpus, sharding_of
from recsys.models.blend import Blend, Member, Model, members_of
from recsys.models.items import ItemTower
from recsys.models.pretrained import PretrainedItems
from recsys.models.priors import ItemPriors
from recsys.models.sharded_table import Sharding, sharded_tables
from recsys.models.towers import UserTower
from recsys.models.two_tower import TwoTower
from recsys.training.frequency import prior_shift

MODEL_KEYS = (
    *("dim", "similarity", "temperature", "learn_temperature"),
    *("prior_shift", "priors", "new_items_offset", "new_items_scale", "new_items_lift"),
)
PRIOR_KEYS = ("age", "recency", "half_lives_days", "lag_days")
# Number of items from which id tables are updated by rows, because a dense step costs as much as the table holds.
SPARSE_ROWS = 100_000


def build_model(config: DictConfig, dataset: PreparedDataset, *, divided: Sharding = "replicated") -> Model:
    """Return the model of a trained run, to load its weights into.

    Args:
        config: configuration of the run.
        dataset: data set that the run was trained on.
        divided: place of the tables that training divided among processes.
    """
    if not config.members:
        return build_towers(config, dataset, fresh=False, divided=divided)
    members = [
        Member(build_towers(member.config, dataset, fresh=False), member.weight, member.config.history.max_events)
        for member in config.members.values()
    ]
    return Blend(members, build_item_bias(config, dataset), new_items_scale=new_items_scale(config))


def build_towers(
    config: DictConfig, dataset: PreparedDataset, *, fresh: bool = True, divided: Sharding = "row_wise"
) -> TwoTower:
    """Return both towers, initialised from the seed.

    Args:
        config: configuration composed from `conf/train.yaml`.
        dataset: data set to train on.
        fresh: whether the towers will be trained. If not, nothing is computed that a checkpoint will fill, such as
            pretrained embeddings.
        divided: place of tables with `sharding=row_wise`.
    """
    check_keys(config.model, MODEL_KEYS, name="model")
    if "priors" in config.model:
        check_keys(config.model.priors, PRIOR_KEYS, name="model.priors")
    check_keys(config.model.prior_shift, ("weight", "half_life_days", "power"), name="model.prior_shift")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed: found {config.seed}, expected 0 to {2**32 - 1}")
    model = config.model
    if model.dim < 1:
        raise UserError(f"model.dim: found {model.dim}, expected at least 1")
    L.seed_everything(config.seed, verbose=False)
    priors = _priors(config, dataset, fresh=fresh)
    try:
        towers = TwoTower(
            user_tower=_user_tower(config, dataset, divided, fresh=fresh),
            item_tower=_item_tower(config, dataset, divided, priors=priors, fresh=fresh),
            similarity=model.similarity,
            temperature=model.temperature,
            learn_temperature=model.learn_temperature,
            item_bias=build_item_bias(config, dataset, has_priors=priors is not None),
            num_trained=dataset.num_trained,
            new_items_scale=new_items_scale(config),
        )
    except ValueError as error:
        fault = named_fault("model", "recsys.models.two_tower.TwoTower", error)
        raise error if isinstance(error, UserError) else UserError(fault) from error
    for table in sharded_tables(towers).values() if not fresh else ():
        table.fill = None
    for module in towers.modules() if fresh else ():
        if isinstance(module, PretrainedItems):
            module.fill(dataset)
        elif isinstance(module, ItemTower):
            module.fit_content(Path(config.data.cache) / CACHE / "svd")
    return towers


def corpus_of(model: Model, dataset: PreparedDataset) -> npt.NDArray[np.int64]:
    """Return the item_idx of the items that the model can recommend, ascending."""
    corpus = dataset.corpus(reads_features=model.reads_features, reads_ids=model.reads_ids)
    evicted = [getattr(member.model.item_tower, "evicted", None) for member in members_of(model)]
    if not model.reads_features and all(mask is not None for mask in evicted):
        nowhere = torch.stack([mask for mask in evicted if mask is not None]).all(0).cpu().numpy()
        corpus = corpus[(corpus >= len(nowhere)) | ~nowhere[np.minimum(corpus, len(nowhere) - 1)]]
    if not len(corpus):
        raise UserError(
            "the corpus is empty: no item has a trained id (with item_tower.admission: min_events events within "
            "window_days) or a feature that the item tower reads"
        )
    return corpus


def _user_tower(config: DictConfig, dataset: PreparedDataset, divided: Sharding, *, fresh: bool) -> UserTower:
    runtime: dict[str, Any] = {"sizes": dataset.sizes}
    if "own_items" in config.user_tower:
        own = config.user_tower.own_items
        runtime["own_items"] = _item_tower(config, dataset, divided, fresh=fresh) if own else None
    if "sharding" in config.user_tower:
        runtime["sharding"] = _place(sharding_of("user_tower", config, dataset), divided)
    if fresh and config.user_tower.get("use_user_id"):
        runtime |= _admitted(config.user_tower, dataset, "users")
    tower: UserTower = complete(instantiate(config.user_tower), **runtime)
    return tower


def _place(sharding: Sharding, divided: Sharding) -> Sharding:
    return divided if sharding == "row_wise" else sharding


def _item_tower(
    config: DictConfig,
    dataset: PreparedDataset,
    divided: Sharding,
    *,
    priors: ItemPriors | None = None,
    fresh: bool,
) -> ItemTower:
    sparse = config.item_tower.sparse
    if sparse == "auto":
        sparse = dataset.num_trained >= SPARSE_ROWS and not reads_corpus(config.loss)
    if not isinstance(sparse, bool):
        raise UserError(f"item_tower.sparse: found '{sparse}', expected true, false or auto")
    # An item tower of an outside package need not know priors.
    more: dict[str, Any] = {} if priors is None else {"priors": priors}
    if "sharding" in config.item_tower:
        more["sharding"] = _place(sharding_of("item_tower", config, dataset), divided)
    if fresh:
        more |= _admitted(config.item_tower, dataset, "items")
    tower: ItemTower = complete(instantiate(config.item_tower), sizes=dataset.sizes, sparse=sparse, **more)
    return tower


def _admitted(tower: DictConfig, dataset: PreparedDataset, owner: Literal["items", "users"]) -> dict[str, Any]:
    """Return the argument `id_rows` of a tower whose id table has a capacity: the row of each item or user."""
    admission = tower.get("admission")
    if admission is None or admission.get("capacity") is None:
        return {}
    return {"id_rows": instantiate(admission).rows(dataset, owner)}


def _priors(config: DictConfig, dataset: PreparedDataset, *, fresh: bool) -> ItemPriors | None:
    """Return the item priors of a configuration, or None if it has none or the data cannot have them.

    Data that trained towers only serve (`fresh` is false) needs no parts.
    """
    settings = config.model.get("priors")
    if settings is None:
        return None
    needs = {"age": dataset.born is not None, "recency": True}
    takes = getattr(class_of(config.loss), "takes_priors", False)
    reads = {}
    for name, has_births in needs.items():
        wanted = settings[name]
        if not isinstance(wanted, bool) and wanted != "auto":
            raise UserError(f"model.priors.{name}: found '{wanted}', expected true, false or auto")
        if wanted is True and fresh and not dataset.parts_follow_in_time:
            raise UserError(
                f"model.priors.{name}=true: expected training, validation and test parts that follow each other in "
                "time, as with split=temporal and timestamps in seconds or days"
            )
        if wanted is True and not has_births:
            raise UserError(
                f"model.priors.{name}=true: expected data.columns.born, the column of items with their births"
            )
        if wanted is True and not takes:
            raise UserError(f"model.priors.{name}=true: expected loss=sampled_softmax or full_softmax")
        reads[name] = wanted is True or (
            wanted == "auto" and dataset.born is not None and dataset.parts_follow_in_time and takes
        )
    if not any(reads.values()):
        return None
    return ItemPriors(reads_age=reads["age"], half_lives_days=settings.half_lives_days if reads["recency"] else ())


def has_item_bias(config: DictConfig) -> bool:
    """Return whether the configuration of a model, or of a blend beside its members, gives items a fixed bias."""
    return bool(config.model.prior_shift.weight or config.model.get("new_items_offset") not in (None, 0, "auto"))


def build_item_bias(config: DictConfig, dataset: PreparedDataset, *, has_priors: bool = False) -> Tensor | None:
    """Return the bias of items float32 [N + 1] that does not depend on the time of an index; None for none.

    Args:
        config: configuration of a model, or of a blend.
        dataset: data set that the model is trained on.
        has_priors: whether item priors will be added.
    """
    offset = new_items_bias(config, dataset)
    shift = config.model.prior_shift
    if not shift.weight:
        return torch.zeros(dataset.num_items + 1) if has_priors and offset is None else offset
    for name, low in (("weight", 0), ("half_life_days", 0), ("power", 0)):
        if shift[name] is None or shift[name] <= low:
            raise UserError(f"model.prior_shift.{name}: found {shift[name]}, expected a positive number")
    bias = prior_shift(dataset, shift.half_life_days, target_sampling=target_sampling_of(config), power=shift.power)
    bias = bias.mul(shift.weight).float()
    return bias if offset is None else bias + offset


def new_items_bias(config: DictConfig, dataset: PreparedDataset) -> Tensor | None:
    """Return `model.new_items_offset` as a bias of all items; None for none, or if it is not fitted yet.

    The scale of new items multiplies their bias too, so the offset is divided by it.
    """
    offset = config.model.get("new_items_offset", 0.0)
    if not offset or offset == "auto":
        return None
    bias = torch.zeros(dataset.num_items + 1)
    bias[dataset.num_trained + 1 :] = bias[UNKNOWN_ITEM] = offset / new_items_scale(config)
    return bias


def new_items_scale(config: DictConfig) -> float:
    """Return `model.new_items_scale`; 1 if it is not fitted yet.

    Raises:
        UserError: If it is neither a positive number nor `auto`.
    """
    scale = config.model.get("new_items_scale", 1.0)
    if scale == "auto":
        return 1.0
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise UserError(f"model.new_items_scale: found {scale!r}, expected a positive number or auto")
    return float(scale)
