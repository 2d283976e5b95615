"""Training of a run with Lightning: on the training part, and again on train + val."""

from __future__ import annotations

import dataclasses
import gc
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from omegaconf import DictConfig
from torch import nn

from recsys.core import distributed
from recsys.core.errors import UserError
from recsys.core.progress import say
from recsys.data.batches.datamodule import RetrievalData
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.callback import FullCorpusEvaluation
from recsys.experiments.assembly import (
    build_callbacks,
    build_data,
    build_module,
    build_towers,
    complete,
    corpus_of,
    instantiate,
)
from recsys.experiments.assembly.model import SPARSE_ROWS
from recsys.experiments.fit_progress import FitProgress
from recsys.experiments.loggers import close_loggers
from recsys.experiments.new_items_level import calibration, fit_new_items_level
from recsys.experiments.processes import trainer_settings
from recsys.experiments.run_folder import RunFolder, write_config
from recsys.experiments.trained_run import load_weights
from recsys.experiments.warm_start import open_earlier_run, start_from
from recsys.models.blend import Model
from recsys.models.sharded_table import sharded_tables
from recsys.models.two_tower import TwoTower
from recsys.training.checkpoints import AtomicCheckpointIO, KeepEarlyStopped
from recsys.training.ema import EMA

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
LAST = "last.ckpt"
BEST = "best.ckpt"


@dataclass(frozen=True)
class TrainingSession:
    """One start of a run.

    Attributes:
        config: configuration of the run.
        run: folder of the run.
        dataset: prepared data; after `refit` its validation events belong to training.
        loggers: loggers of this start.
    """

    config: DictConfig
    run: RunFolder
    dataset: PreparedDataset
    loggers: list[Logger]

    def refit(self) -> TrainingSession:
        """Return the session on train + val."""
        return dataclasses.replace(self, dataset=self.dataset.refit())


class _StopAfter(Checkpoint):
    """Stops after some epochs and writes `last.ckpt`, so that a later start continues as if there had been no stop.

    It runs after all other callbacks. When training has ended, the averaged weights have replaced those that it needs.
    """

    def __init__(self, epochs: int, path: Path) -> None:
        self.epochs, self.path = epochs, path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        if trainer.current_epoch + 1 >= self.epochs or trainer.should_stop:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def select_checkpoint(session: TrainingSession, *, epochs: int | None = None) -> None:
    """Train on the training part and keep the checkpoint with the best validation metric.

    Args:
        session: start of the run.
        epochs: epochs after which training stops, to be continued by another call; None for the whole training.
    """
    config, run, dataset = session.config, session.run, session.dataset
    last = _existing(run.checkpoints / LAST)
    trainer = None
    try:
        module = build_module(config, dataset, model=_towers(session, fresh=last is None))
        data = _training_data(session)
        # Evaluation must run after the callback that swaps in averaged weights.
        named = _named_callbacks(session, run.checkpoints)
        evaluation = build_evaluation(
            session, module.model, calibrate=calibration(config, dataset, model=module.model, builder=data.builder)
        )
        callbacks = [*(c for _, c in named), KeepEarlyStopped(), evaluation]
        if epochs is not None:
            callbacks.append(_StopAfter(epochs, run.checkpoints / LAST))
        trainer = build_trainer(session, callbacks)
        begin = time.monotonic()
        trainer.fit(module, data, ckpt_path=last, weights_only=True)
    except UserError:
        if trainer is None or not trainer.global_step:
            # Settings that only the first step shows to be wrong; the folder stays free.
            close_loggers(session.loggers)
            run.unclaim()
        raise
    seconds = time.monotonic() - begin
    say_profile(trainer)
    if epochs is None:
        trainer.save_checkpoint(run.checkpoints / LAST)
    best = run.checkpoints / BEST
    checkpoints = [c for c in callbacks if isinstance(c, ModelCheckpoint) and c.best_model_path]
    if not checkpoints:
        # Training was too short for a validation.
        trainer.save_checkpoint(best)
    if epochs is not None:
        score = next((c.best_model_score for c in checkpoints), None)
        run.write_metrics({config.evaluation.metric: 0.0 if score is None else float(score)})
        distributed.barrier()
        return
    load_weights(module.model, best)
    fit_new_items_level(config, dataset, model=module.model, builder=data.builder)
    if distributed.is_first():
        write_config(run.path, config)
    # Other callbacks would replace the selected weights by averaged ones.
    validator = build_trainer(session, [build_evaluation(session, module.model)])
    validator.validate(module, data, verbose=False)
    run.write_metrics(logged_metrics(validator, "val/"))
    run.update(
        selected=int(torch.load(best, map_location="cpu", weights_only=True, mmap=True)["global_step"]),
        steps=trainer.global_step,
        schedule_steps=module.schedule_steps,
        parameters=count_parameters(module.model),
        # A start after the last step trains no targets, so the speed of the earlier start stays.
        targets_per_second=round(module.num_targets / seconds, 1)
        if module.num_targets
        else run.state.targets_per_second or 0.0,
    )
    distributed.barrier()


def fit_again(session: TrainingSession) -> None:
    """Train a fresh model for the selected number of steps, in a session that `TrainingSession.refit` returned."""
    run = session.run
    free_tables(session.dataset)
    folder = run.checkpoints / "refit"
    last = _existing(folder / LAST)
    model = _towers(session, fresh=last is None)
    module = build_module(session.config, session.dataset, model=model, schedule_steps=run.state.schedule_steps)
    callbacks = [c for name, c in _named_callbacks(session, folder) if name not in ("early_stopping", "best")]
    trainer = build_trainer(
        session,
        callbacks,
        what="training on train + val",
        max_steps=run.state.selected,
        max_epochs=-1,
        limit_val_batches=0,
    )
    trainer.fit(module, _training_data(session), ckpt_path=last, weights_only=True)
    trainer.save_checkpoint(run.checkpoints / BEST)
    run.update(refitted=True)
    distributed.barrier()


def free_tables(dataset: PreparedDataset) -> None:
    """Free the large tables of a training that has ended: its trainer and its module refer to each other."""
    if dataset.num_trained >= SPARSE_ROWS:
        gc.collect()


def build_trainer(
    session: TrainingSession, callbacks: list[L.Callback], *, what: str = "training", **settings: Any
) -> L.Trainer:
    """Return the trainer of the configuration, with some of its settings replaced.

    Args:
        session: configuration, run folder and loggers.
        callbacks: callbacks besides that of progress.
        what: name of the work in lines of progress.
        **settings: arguments of `lightning.Trainer`.
    """
    config = session.config
    if (name := config.trainer.get("profiler")) in PROFILERS:
        settings["profiler"] = PROFILERS[name](dirpath=session.run.path / "profile", filename="profile")
    processes = trainer_settings(config)
    plugins = [AtomicCheckpointIO(), *processes.pop("plugins")]
    trainer = instantiate(config.trainer, default_root_dir=str(session.run.path), **processes, **settings)
    has_own = any(isinstance(callback, ProgressBar) for callback in callbacks)
    if config.trainer.get("enable_progress_bar", True) and not has_own:
        callbacks = [*callbacks, FitProgress(config.evaluation.metric, what)]
    trainer = complete(trainer, callbacks=callbacks, logger=session.loggers, plugins=plugins)
    assert isinstance(trainer, L.Trainer)
    return trainer


def say_profile(trainer: Any) -> None:
    """Write the table of the profiler, if the configuration names one."""
    if table := trainer.profiler.summary():
        say(table)


def build_evaluation(
    session: TrainingSession, model: Model, *, calibrate: Callable[[TwoTower], None] | None = None
) -> FullCorpusEvaluation:
    """Return the callback that measures a model on the whole corpus."""
    config, dataset = session.config, session.dataset
    return FullCorpusEvaluation(
        dataset,
        corpus_of(model, dataset),
        exclude_seen=config.exclude_seen,
        selection_metric=config.evaluation.metric,
        calibrate=calibrate,
    )


def logged_metrics(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    """Return the metrics that a trainer logged under names with the prefix."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}


def count_parameters(model: Model) -> dict[str, int]:
    """Return the number of parameters: all, trained ones, of both towers, of embedding tables, and of each table."""
    tables = {name: module.weight.numel() for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    sizes = [(name, parameter.numel(), parameter.requires_grad) for name, parameter in model.named_parameters()]
    for name, table in sharded_tables(model).items():
        tables[name] = table.num_embeddings * table.embedding_dim
        sizes.append((name, tables[name], True))
    counts = {"total": 0, "trainable": 0, "user_tower": 0, "item_tower": 0, "tables": sum(tables.values())}
    for name, size, is_trained in sizes:
        # A blend has both towers of each member.
        kinds = {"total", *(["trainable"] if is_trained else []), *name.split(".")}
        for kind in kinds & counts.keys():
            counts[kind] += size
    return counts | tables


def silence_lightning() -> None:
    """Hide advertisements, hardware summaries and warnings that hold for every run here and call for no action."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*`srun` command is available.*",
        ".*GPU available but not used.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*LeafSpec.*",
        ".*is smaller than the logging interval.*",
        # Metrics are reduced over processes before they are logged.
        ".*sync_dist=True.*",
        # `configure_model` creates divided tables alone, which are refused with averages of weights.
        ".*WeightAveraging doesn't support sharding.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _training_data(session: TrainingSession) -> RetrievalData:
    """Return the loaders, and record the time of the newest training event, which the configuration does not fix."""
    dataset = session.dataset
    if session.config.portions and distributed.world_size() > 1:
        # Machines that share the users hold no times of others.
        own = dataset.share(distributed.rank(), distributed.world_size()).train_until
        until = max((time for time in distributed.share(own) if time is not None), default=None)
    else:
        until = dataset.train_until if distributed.is_first() else None
    if distributed.is_first():
        session.run.update(train_until=until)
    return build_data(session.config, dataset)


def _towers(session: TrainingSession, *, fresh: bool) -> TwoTower:
    """Return both towers; fresh ones get the weights of the run in `warm_start`, if any."""
    config, dataset = session.config, session.dataset
    model = build_towers(config, dataset, fresh=fresh)
    if fresh and config.warm_start is not None:
        earlier = open_earlier_run(config.warm_start)
        start_from(earlier, model, dataset=dataset)
        session.run.update(steps_before=earlier.steps)
    return model


def _named_callbacks(session: TrainingSession, folder: Path) -> list[tuple[str, L.Callback]]:
    callbacks = session.config.callbacks
    named = list(zip(map(str, callbacks), build_callbacks(session.config, folder), strict=True))
    for _, callback in named:
        if isinstance(callback, EarlyStopping):
            # `trainer.max_steps` may end training within an epoch, before its validation.
            callback.strict = False
        if isinstance(callback, EMA):
            callback.steps_before = session.run.state.steps_before
    return named


def _existing(checkpoint: Path) -> Path | None:
    return checkpoint if checkpoint.exists() else None
