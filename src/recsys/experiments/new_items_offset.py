"""Offset of the logits of items without training events, fitted by maximum likelihood on validation.

Training never compares an item without training events with others, so the level of its logits is arbitrary. On
validation some of these items are chosen. Under a softmax over the items that could be chosen, the log-likelihood of
the choices is concave in one offset d of all new items. With W_r and V_r, the logsumexp of the logits of trained and of
new candidates for request r, a choice is new with probability sigmoid(V_r + d - W_r).

Shapes: R requests, C candidates, D dim.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import DictConfig
from torch import Tensor

from recsys.core.columns import Ragged
from recsys.core.types import Int64Array
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.loaders import RequestLoader
from recsys.data.dataset import PreparedDataset, Requests
from recsys.evaluation.ranking import encode_corpus
from recsys.evaluation.relevance import relevant_items, seen_items
from recsys.experiments.assembly import build_item_bias, corpus_of
from recsys.models.two_tower import TwoTower

log = logging.getLogger("recsys")

# Standard deviation of the normal prior of the offset around 0, which decides if few choices are new.
PRIOR_DEVIATION = 1.0
# Number of choices of new items below which the log says that the prior has a part in the offset.
FEW = 20
# Bounds of the logits that one fit computes: after training, and before each validation.
MOST_LOGITS, MOST_LOGITS_OF_AN_EPOCH = 1_000_000_000, 100_000_000
# Requests of a fit, however many candidates there are, and at most.
LEAST_REQUESTS, MOST_REQUESTS = 500, 10_000
_BLOCK = 1 << 24


class Choices(NamedTuple):
    """Choices on validation.

    Attributes:
        requests: sample of the validation requests.
        rows: rows of the sample among all validation requests, int64 [R].
        candidates: item_idx of the candidates, int64 [C]: items with training events, then new items that could be
            chosen, see `_could_be_chosen`.
        num_trained: number of candidates with training events.
        num_chosen: number of choices of each request, float64 [R].
        num_new: number of those that are new, float64 [R].
        seen: items that a request does not get, as rows of `candidates`.
    """

    requests: Requests
    rows: Int64Array
    candidates: Int64Array
    num_trained: int
    num_chosen: Tensor
    num_new: Tensor
    seen: Ragged


def validation_choices(
    dataset: PreparedDataset, corpus: Int64Array, *, exclude_seen: bool, most_logits: int = MOST_LOGITS, seed: int = 0
) -> Choices | None:
    """Return choices to fit an offset on.

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
    owner = np.repeat(np.arange(len(rows)), np.diff(chosen.offsets))
    num_chosen = np.diff(chosen.offsets).astype(np.float64)
    num_new = np.bincount(owner[chosen.values >= num_trained], minlength=len(rows)).astype(np.float64)
    nothing = Ragged(np.zeros(0, np.int32), np.zeros(len(rows) + 1, np.int64))
    seen = _rows(seen_items(dataset, requests), row_of) if exclude_seen else nothing
    counts = torch.from_numpy(num_chosen), torch.from_numpy(num_new)
    return Choices(requests, rows, candidates, num_trained, *counts, seen)


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


@torch.inference_mode()
def fit_offset(choices: Choices, users: Tensor, items: Tensor, *, power: float = 1.0) -> float:
    """Return the offset with the highest posterior probability.

    Args:
        choices: choices on validation.
        users: embeddings of the requests, [R, D], or [R, M, D], of which the best counts.
        items: embeddings of the candidates, [C, D], whose inner products with the users are logits.
        power: power of the prior shift that the logits contain. Above 1 it makes them about so many times as large as
            those of a calibrated model. Their likelihood would then show new items to everyone, so it is taken from the
            logits divided by the power.
    """
    scale = max(power, 1.0)
    items = items if scale == 1 else items / scale
    difference = torch.cat(
        [
            _log_odds(users[begin : begin + height], items, choices=choices, begin=begin)
            for height in [max(_BLOCK // len(items), 1)]
            for begin in range(0, len(users), height)
        ]
    )
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        expected = (choices.num_chosen * torch.sigmoid(difference + middle)).sum()
        slope = float(choices.num_new.sum() - expected) - middle / PRIOR_DEVIATION**2
        low, high = (middle, high) if slope > 0 else (low, middle)
    return round(scale * middle, 4)


def best_logits(users: Tensor, items: Tensor) -> Tensor:
    """Return the inner products [R, C] of requests [R, D], or of the best embedding of each [R, M, D], with items."""
    if users.ndim == 2:
        return users @ items.T
    logits = (users @ items.T).masked_fill_(~users.any(2, keepdim=True), -torch.inf).amax(1)
    return torch.where(logits == -torch.inf, 0.0, logits)


def _log_odds(users: Tensor, items: Tensor, *, choices: Choices, begin: int) -> Tensor:
    """Return the log odds that a choice is new, without an offset; float64 [H] of the requests from `begin` on."""
    logits = best_logits(users, items)
    offsets = choices.seen.offsets[begin : begin + len(users) + 1]
    row = torch.from_numpy(np.repeat(np.arange(len(users)), np.diff(offsets))).to(users.device)
    column = torch.from_numpy(choices.seen.values[offsets[0] : offsets[-1]]).to(users.device)
    logits[row, column] = -torch.inf
    trained, new = logits[:, : choices.num_trained], logits[:, choices.num_trained :]
    odds = new.logsumexp(1) - trained.logsumexp(1)
    # A request whose candidates of one kind are all in its history tells nothing.
    return torch.nan_to_num(odds, nan=0.0, posinf=100.0, neginf=-100.0).double().cpu()


def calibration(
    config: DictConfig, dataset: PreparedDataset, *, model: TwoTower, builder: BatchBuilder
) -> Callable[[TwoTower], None] | None:
    """Return a function that fits the offset of a model in training, so that each validation ranks as it would later.

    Returns:
        None if the configuration has an offset, or there is nothing to fit one on.
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
        shift = (is_new * _offset(config, dataset, now, choices=choices, builder=builder)).to(now.device)
        kept.copy_(shift if now.item_bias is None else now.item_bias + shift)
        now.item_bias = kept

    return calibrate


def fit_new_items_offset(
    config: DictConfig, dataset: PreparedDataset, *, model: TwoTower, builder: BatchBuilder
) -> None:
    """Fit `model.new_items_offset=auto` of a trained model, and put the number into the configuration and the model.

    Args:
        config: configuration of the run.
        dataset: data set whose validation part training has not seen.
        model: model with its selected weights.
        builder: builder of batches with the history length of the model.
    """
    if config.model.new_items_offset != "auto":
        return
    choices, offset = _choices(config, dataset, model, MOST_LOGITS), 0.0
    if choices is not None:
        model.eval()
        offset = _offset(config, dataset, model, choices=choices, builder=builder)
        num_new = int(choices.num_new.sum())
        log.info(
            "new items: model.new_items_offset=%.2f, %g of it a lift, fitted on %s validation events of new items%s",
            offset, config.model.new_items_lift, f"{num_new:,}", " (few: drawn towards 0)" if num_new < FEW else "",
        )  # fmt: skip
    elif model.reads_features and len(corpus_of(model, dataset)) > dataset.num_trained:
        log.info("new items: model.new_items_offset=0, because no new item has validation events to fit it on")
    config.model.new_items_offset = offset
    _set_bias(config, dataset, model)


def _choices(config: DictConfig, dataset: PreparedDataset, model: TwoTower, most_logits: int) -> Choices | None:
    if config.model.new_items_offset != "auto" or not model.reads_features:
        return None
    corpus, exclude_seen = corpus_of(model, dataset), config.exclude_seen
    return validation_choices(dataset, corpus, exclude_seen=exclude_seen, most_logits=most_logits, seed=config.seed)


@torch.inference_mode()
def _offset(
    config: DictConfig, dataset: PreparedDataset, model: TwoTower, *, choices: Choices, builder: BatchBuilder
) -> float:
    """Return the offset of a model in evaluation mode, whose bias of items is set to that without an offset."""
    _set_bias(config, dataset, model)
    loader = RequestLoader(builder, choices.requests)
    users = torch.cat([model.encode_users(batch.to(model.device)) for batch, _ in loader])
    items = encode_corpus(model, torch.from_numpy(choices.candidates).to(model.device)) / model.temperature
    lift: float = config.model.new_items_lift
    shift = config.model.prior_shift
    return fit_offset(choices, users, items, power=shift.power if shift.weight else 1.0) + lift


def _set_bias(config: DictConfig, dataset: PreparedDataset, model: TwoTower) -> None:
    """Set the bias of items to that of the configuration, for the time of the validation part."""
    bias = build_item_bias(config, dataset, has_priors=model.priors is not None)
    model.item_bias = None if bias is None else bias.to(model.device)
    if model.priors is not None:
        model.fixed_bias = bias
        model.set_item_bias(dataset, dataset.index_time("val"))
