"""Training step of a configuration, with its negatives and loss, and callbacks."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from omegaconf import DictConfig
from torch import Tensor

from recsys.core.errors import UserError, nearest
from recsys.core.instantiate import class_of, instantiate
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.metrics import CUTOFFS, NAMES
from recsys.evaluation.slices import SLICE_METRICS
from recsys.experiments.assembly.model import corpus_of
from recsys.experiments.assembly.objects import complete
from recsys.models.two_tower import TwoTower
from recsys.training.frequency import Frequency, target_probabilities
from recsys.training.module import RetrievalModule
from recsys.training.negatives import NegativeSampler, SamplerInputs
from recsys.training.prior_terms import TrainingPriors


def build_module(
    config: DictConfig,
    dataset: PreparedDataset,
    *,
    model: TwoTower,
    schedule_steps: int | None = None,
) -> RetrievalModule:
    """Return the training step of a configuration.

    Args:
        config: configuration composed from `conf/train.yaml`.
        dataset: data set to train on.
        model: both towers.
        schedule_steps: length of the learning-rate schedule; None for the steps that the trainer will make.
    """
    # An item without training events may not have existed at the time of a target, so it is no negative.
    corpus = torch.from_numpy(corpus_of(model, dataset))
    corpus = corpus[: int(torch.searchsorted(corpus, dataset.num_trained, right=True))]
    loss = instantiate(config.loss)
    if config.loss.get("_partial_"):
        loss = complete(loss, num_items=len(corpus))
    negatives = _build_negatives(config, dataset, corpus)
    return RetrievalModule(
        model,
        loss,
        negatives=negatives,
        optimizer=instantiate(config.optimizer),
        corpus=corpus,
        clip_norm=config.clip_norm,
        seed=config.seed,
        schedule_steps=schedule_steps,
        priors=_training_priors(config, dataset, model),
    )


def _training_priors(config: DictConfig, dataset: PreparedDataset, model: TwoTower) -> TrainingPriors | None:
    """Return the item priors of training steps. Without learned ones, births still mask negatives."""
    masks = dataset.born is not None and getattr(class_of(config.loss), "takes_priors", False)
    if model.priors is None and not (masks and dataset.meta.time_resolution.has_clock):
        return None
    lag = config.model.priors.lag_days
    if lag == "auto":
        # The states are at most as old when the next part is evaluated.
        ahead = dataset.index_time("val") or dataset.index_time("test")
        lag = 0.0 if ahead is None else min(ahead.horizon_days, 30.0)
    if isinstance(lag, bool) or not isinstance(lag, int | float) or lag < 0:
        raise UserError(f"model.priors.lag_days: found '{lag}', expected days, 0 or more, or auto")
    priors = TrainingPriors(dataset, model.priors, lag_days=lag)
    priors.fit_alone(dataset, config.seed)
    return priors


def build_callbacks(config: DictConfig, checkpoints: Path) -> list[L.Callback]:
    """Return the callbacks of a configuration; those with `_partial_: true` get the folder `checkpoints`."""
    check_metric(config.evaluation.metric)
    callbacks = []
    for name, node in config.callbacks.items():
        if node.get("monitor") is not None:
            check_metric(node.monitor, place=f"callbacks.{name}.monitor", others=("train/loss",))
        callback = instantiate(node)
        callbacks.append(complete(callback, dirpath=checkpoints) if node.get("_partial_") else callback)
    return callbacks


def check_metric(metric: str, *, place: str = "evaluation.metric", others: tuple[str, ...] = ()) -> None:
    """Refuse a name that is neither a validation metric nor one of the others."""
    names = [f"val/{name}@{cutoff}" for name in (*NAMES, "coverage", *SLICE_METRICS) for cutoff in CUTOFFS]
    if metric not in (*names, *others):
        raise UserError(f"{place}: found '{metric}'{nearest(metric, (*names, *others))}")


def _build_negatives(config: DictConfig, dataset: PreparedDataset, corpus: Tensor) -> NegativeSampler | None:
    probabilities = target_probabilities(dataset, config.history.predict_first)
    frequency: Frequency = instantiate(config.frequency)
    if config.frequency.get("_partial_"):
        frequency = complete(frequency, probabilities=probabilities)
    negatives: NegativeSampler | None = None
    if config.negatives["_target_"] is not None:
        inputs = SamplerInputs(probabilities, corpus, frequency)
        negatives = complete(instantiate(config.negatives), inputs=inputs)
    if frequency.is_estimated and (negatives is None or negatives.frequency is None):
        raise UserError(
            "frequency: these negatives are not targets of batches, so their probabilities are known; "
            "expected frequency=exact"
        )
    return negatives
