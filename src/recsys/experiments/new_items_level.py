"""Choices on validation, and the level of new items that is fitted on them; see `level_fit`.

Shapes: R requests, C candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import DictConfig

from recsys.core.columns import Ragged
from recsys.core.types import Int64Array
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.loaders import RequestLoader
from recsys.data.dataset import PreparedDataset, Requests
from recsys.evaluation.ranking import encode_corpus
from recsys.evaluation.relevance import relevant_items, seen_items
from recsys.experiments.assembly import build_item_bias, corpus_of
from recsys.experiments.level_fit import MOST_KEPT, Choices, Level, fit_level
from recsys.models.two_tower import TwoTower

log = logging.getLogger("recsys")

# Number of choices of new items below which the log says that the priors have a part in the level.
FEW = 20
# Bounds of the logits that a fit is made on: after training, and before each validation.
MOST_LOGITS, MOST_LOGITS_OF_AN_EPOCH = MOST_KEPT, 5_000_000
# Requests of a fit, however many candidates there are, and at most.
LEAST_REQUESTS, MOST_REQUESTS = 100, 10_000


def validation_choices(
    dataset: PreparedDataset, corpus: Int64Array, *, exclude_seen: bool, most_logits: int = MOST_LOGITS, seed: int = 0
) -> Choices | None:
    """Return choices to fit a level on.

    Args:
        dataset: data set whose validation part training has not seen.
        corpus: item_idx of the items that can be recommended, ascending.
        exclude_seen: whether items of the history are left out.
        most_logits: bound of requests times candidates.
        seed: seed of the sample of requests.

    Returns:
        None if no item of the corpus has validation events without training events.
    """
    candidates = corpus[_could_be_chosen(dataset)[corpus]]
    num_trained = int(np.searchsorted(candidates, dataset.num_trained, side="right"))
    has_new = bool(((corpus > dataset.num_trained) & (corpus <= dataset.meta.num_seen)).any())
    if not (num_trained and has_new):
        return None
    everyone = dataset.requests("val")
    most = min(max(most_logits // len(candidates), LEAST_REQUESTS), MOST_REQUESTS)
    order = np.random.default_rng(seed).permutation(len(everyone.user_idx))
    rows = np.sort(order[:most])
    requests = Requests(*(column[rows] for column in everyone))
    row_of = np.full(dataset.num_items + 1, -1)
    row_of[candidates] = np.arange(len(candidates))
    chosen = _rows(relevant_items(dataset, "val", requests=requests, exclude_seen=exclude_seen), row_of)
    nothing = Ragged(np.zeros(0, np.int32), np.zeros(len(rows) + 1, np.int64))
    seen = _rows(seen_items(dataset, requests), row_of) if exclude_seen else nothing
    return Choices(requests, rows, candidates, num_trained, chosen, seen)


def _could_be_chosen(dataset: PreparedDataset) -> npt.NDArray[np.bool_]:
    """Return a mask bool [N + 1] of the items that a validation event could have chosen.

    These are the items with training or validation events. If validation follows training in time, they are also the
    items of the items table that were born by then: that nobody chose them says how rarely new items are chosen. In
    other splits such items were put aside for the test, so nobody could choose them.
    """
    could = np.arange(dataset.num_items + 1) <= dataset.meta.num_seen
    times = dataset.part_times("val")
    if dataset.parts_follow_in_time and times is not None:
        could |= np.arange(len(could)) <= dataset.meta.num_known
        if dataset.born is not None:
            # An item with an event exists, whatever its birth.
            could &= (dataset.born <= times[1]) | (np.arange(len(could)) <= dataset.meta.num_seen)
    return could


def _rows(items: Ragged, row_of: Int64Array) -> Ragged:
    """Return rows of candidates instead of items, without the items that are none."""
    found = row_of[items.values]
    owner = np.repeat(np.arange(len(items.offsets) - 1), np.diff(items.offsets))[found >= 0]
    counts = np.bincount(owner, minlength=len(items.offsets) - 1)
    return Ragged(found[found >= 0].astype(np.int32), np.concatenate([[0], np.cumsum(counts)]))


def calibration(
    config: DictConfig, dataset: PreparedDataset, *, model: TwoTower, builder: BatchBuilder
) -> Callable[[TwoTower], None] | None:
    """Return a function that fits the level of a model in training, so that each validation ranks as it would later.

    Returns:
        None if the configuration has an offset, or there is nothing to fit a level on.
    """
    choices = _choices(config, dataset, model, MOST_LOGITS_OF_AN_EPOCH)
    if choices is None:
        return None
    is_new = torch.arange(dataset.num_items + 1) > dataset.num_trained
    if model.item_bias is None:
        # Averages of weights pair the buffers of two copies of the model, so a buffer must not appear in training.
        model.item_bias = torch.zeros(len(is_new))

    def calibrate(now: TwoTower) -> None:
        kept = now.item_bias
        assert kept is not None
        level = _fitted(config, dataset, now, choices=choices, builder=builder)
        shift = (is_new * (level.offset / level.scale)).to(now.device)
        kept.copy_(shift if now.item_bias is None else now.item_bias + shift)
        now.item_bias, now.new_items_scale = kept, level.scale

    return calibrate


def fit_new_items_level(
    config: DictConfig, dataset: PreparedDataset, *, model: TwoTower, builder: BatchBuilder
) -> None:
    """Fit `model.new_items_offset=auto` and `model.new_items_scale=auto` of a trained model.

    The numbers are put into the configuration and the model.

    Args:
        config: configuration of the run.
        dataset: data set whose validation part training has not seen.
        model: model with its selected weights.
        builder: builder of batches with the history length of the model.
    """
    settings = config.model
    if settings.new_items_offset != "auto":
        if settings.new_items_scale == "auto":
            settings.new_items_scale = model.new_items_scale = 1.0
        return
    choices, given = _choices(config, dataset, model, MOST_LOGITS), settings.new_items_scale
    level = Level(1.0 if given == "auto" else given)
    if choices is not None:
        model.eval()
        level = _fitted(config, dataset, model, choices=choices, builder=builder)
        num_new = choices.num_new
        log.info(
            "new items: model.new_items_scale=%.2f, model.new_items_offset=%.2f, %g of it a lift, fitted on %s "
            "validation events of new items%s",
            level.scale, level.offset, settings.new_items_lift, f"{num_new:,}",
            " (few: drawn towards 1 and 0)" if num_new < FEW else "",
        )  # fmt: skip
    elif model.reads_features and len(corpus_of(model, dataset)) > dataset.num_trained:
        log.info("new items: model.new_items_offset=0, because no new item has validation events to fit it on")
    settings.new_items_scale, settings.new_items_offset = level
    model.new_items_scale = level.scale
    _set_bias(config, dataset, model)


def _choices(config: DictConfig, dataset: PreparedDataset, model: TwoTower, most_logits: int) -> Choices | None:
    if config.model.new_items_offset != "auto" or not model.reads_features:
        return None
    corpus, exclude_seen = corpus_of(model, dataset), config.exclude_seen
    return validation_choices(dataset, corpus, exclude_seen=exclude_seen, most_logits=most_logits, seed=config.seed)


@torch.inference_mode()
def _fitted(
    config: DictConfig, dataset: PreparedDataset, model: TwoTower, *, choices: Choices, builder: BatchBuilder
) -> Level:
    """Return the level of a model in evaluation mode, whose bias and scale are set to those without one."""
    _set_bias(config, dataset, model)
    model.new_items_scale = 1.0
    loader = RequestLoader(builder, choices.requests)
    users = torch.cat([model.encode_users(batch.to(model.device)) for batch, _ in loader])
    items = encode_corpus(model, torch.from_numpy(choices.candidates).to(model.device)) / model.temperature
    given, lift = config.model.new_items_scale, float(config.model.new_items_lift)
    level = fit_level(choices, users, items, scale=None if given == "auto" else float(given))
    return level._replace(offset=level.offset + lift)


def _set_bias(config: DictConfig, dataset: PreparedDataset, model: TwoTower) -> None:
    """Set the bias of items to that of the configuration, for the time of the validation part."""
    bias = build_item_bias(config, dataset, has_priors=model.priors is not None)
    model.item_bias = None if bias is None else bias.to(model.device)
    if model.priors is not None:
        model.fixed_bias = bias
        model.set_item_bias(dataset, dataset.index_time("val"))
