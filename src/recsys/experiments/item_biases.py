"""Item biases of a model for the time of an index: counts as of then, and ages as of then."""

from __future__ import annotations

import dataclasses

import numpy as np
from omegaconf import DictConfig
from torch import Tensor

from recsys.core.errors import UserError
from recsys.core.index_time import IndexTime
from recsys.core.types import Int64Array
from recsys.data.dataset import PreparedDataset
from recsys.experiments.assembly import new_items_bias, new_items_scale, target_sampling_of
from recsys.experiments.risen_items import ascribed_shares, risen_items
from recsys.models.blend import Model, members_of
from recsys.models.two_tower import TwoTower
from recsys.training.frequency import RisenItems, prior_shift


def set_bias(model: Model, dataset: PreparedDataset, *, config: DictConfig, index_time: IndexTime | None) -> None:
    """Set the item biases of a model for the time of an index: counts as of now, and ages as of now.

    Args:
        model: model that was built on the data.
        dataset: events, of which the training part are those that the towers were trained on.
        config: configuration of the run.
        index_time: time of the index; None leaves the biases as they are.
    """
    if index_time is None:
        return
    for part, settings in _parts(model, config):
        if settings.model.prior_shift.weight:
            _set_fixed(part, _shift(dataset, settings, model=part, now=index_time.now))
    model.set_item_bias(dataset, index_time)


def _parts(model: Model, config: DictConfig) -> list[tuple[Model, DictConfig]]:
    if not config.members:
        return [(model, config)]
    members = [member.config for member in config.members.values()]
    return [*zip([member.model for member in members_of(model)], members, strict=True), (model, config)]


def _shift(dataset: PreparedDataset, config: DictConfig, *, model: Model, now: int) -> Tensor:
    if not (dataset.train_end > dataset.offsets[:-1]).any():
        raise UserError(
            "model.prior_shift: the data holds no event of the training of the towers, which the shift compares with; "
            "expected data that reaches back to it"
        )
    shift, sampling = config.model.prior_shift, target_sampling_of(config)
    recent = dataclasses.replace(dataset, train_end=ends_before(dataset, now))
    items = risen_items(dataset, recent, target_sampling=sampling)
    risen = RisenItems(items, ascribed_shares(model, dataset, items, config=config)) if len(items) else None
    bias = prior_shift(
        dataset, shift.half_life_days, target_sampling=sampling, power=shift.power, recent=recent, risen=risen
    )
    bias = bias.mul(shift.weight).float()
    # The scale of new items multiplies their bias too.
    bias[items] /= new_items_scale(config)
    offset = new_items_bias(config, dataset)
    if offset is None:
        return bias
    # The offset stands for the popularity of items that nobody has chosen yet.
    offset[items] = 0.0
    return bias + offset


def _set_fixed(model: Model, bias: Tensor) -> None:
    if isinstance(model, TwoTower) and model.fixed_bias is not None:
        model.fixed_bias = bias.to(model.device)
    else:
        model.item_bias = bias.to(model.device)


def ends_before(dataset: PreparedDataset, moment: int) -> Int64Array:
    """Return the end of each user's events before a moment, as positions; int64 [U]."""
    count = np.concatenate([[0], np.cumsum(np.asarray(dataset.time) < moment)])
    begin, end = dataset.offsets[:-1], dataset.offsets[1:]
    return np.asarray(begin + count[end] - count[begin])
