"""One run, from configuration to a run folder; killed at any moment and started again, it goes on."""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from recsys.core import distributed
from recsys.data.batches.datamodule import RetrievalData
from recsys.data.dataset import PreparedDataset
from recsys.evaluation.callback import FullCorpusEvaluation
from recsys.evaluation.ranking import per_user_table
from recsys.experiments import tracking
from recsys.experiments.assembly import (
    build_callbacks,
    build_data,
    build_model,
    build_module,
    build_towers,
    complete,
    corpus_of,
    instantiate,
    open_data,
    reachable,
)
from recsys.experiments.final_test import examples, rolling_metrics
from recsys.experiments.hard_negative_mining import miner
from recsys.experiments.run_folder import RunFolder, RunStatus, write_config
from recsys.experiments.trained_run import load_weights, stored_config
from recsys.experiments.warm_start import open_earlier, start_from
from recsys.models.blend import Model
from recsys.models.two_tower import TwoTower
from recsys.training.checkpoints import AtomicCheckpointIO, KeepEarlyStopped
from recsys.training.ema import EMA
from recsys.training.module import EmbeddingModule


def train(config: DictConfig, path: Path) -> RunFolder:
    """Fit, refit if asked, evaluate, and leave the run folder.

    A finished run is returned as it is; one that was killed goes on from its last checkpoint. With `test=false` it ends
    where `select` does, and the same command without that goes on from there.

    Args:
        config: composed from `conf/train.yaml`.
        path: of the run folder.
    """
    if not config.test:
        return select(config, path)
    run = RunFolder(path, config)
    if run.state.status == RunStatus.FINISHED:
        return run
    begin = time.monotonic()
    before = run.state.seconds
    dataset, loggers = _start(config, run)
    if not run.state.is_selected:
        _select(config, run, dataset, loggers)
        run.update(seconds=before + time.monotonic() - begin)
    if config.refit:
        dataset = dataset.refit()
        if not run.state.refitted:
            _refit(config, run, dataset, loggers)
    _test(config, run, dataset, loggers)
    run.update(
        status=RunStatus.FINISHED,
        seconds=round(before + time.monotonic() - begin, 1),
        peak_memory_bytes=tracking.peak_memory_bytes(),
    )
    tracking.log_summary(loggers, {**run.state.to_json(), **run.metrics})
    tracking.log_checkpoint(loggers, path, dataset.meta.fingerprint)
    tracking.close(loggers)
    return run


def select(config: DictConfig, path: Path) -> RunFolder:
    """The first half of `train`: fit, and measure the selected checkpoint on validation, not on test.

    Args:
        config: composed from `conf/train.yaml`.
        path: of the run folder.
    """
    run = RunFolder(path, config)
    if run.state.is_selected:
        if run.state.status != RunStatus.FINISHED:
            run.update(status=RunStatus.SELECTED)
        return run
    begin = time.monotonic()
    before = run.state.seconds
    dataset, loggers = _start(config, run)
    _select(config, run, dataset, loggers)
    run.update(
        status=RunStatus.SELECTED,
        seconds=round(before + time.monotonic() - begin, 1),
        peak_memory_bytes=tracking.peak_memory_bytes(),
    )
    tracking.log_summary(loggers, {**run.state.to_json(), **run.metrics})
    tracking.close(loggers)
    return run


def refit(config: DictConfig, path: Path) -> RunFolder:
    """Train a run that `select` left again on train + val, where its configuration says so; test is not looked at.

    Args:
        config: composed from `conf/train.yaml`.
        path: of the run folder.
    """
    run = RunFolder(path, config)
    if not config.refit or run.state.refitted:
        return run
    begin = time.monotonic()
    dataset, loggers = _start(config, run)
    _refit(config, run, dataset.refit(), loggers)
    run.update(status=RunStatus.SELECTED, seconds=round(run.state.seconds + time.monotonic() - begin, 1))
    tracking.close(loggers)
    return run


def finish(path: Path) -> RunFolder:
    """The second half of `train`, for a run that `select` left: refit if asked, and look at the test part.

    Args:
        path: of the run folder.
    """
    config = stored_config(path)
    config.test = True
    write_config(path, config)
    return train(config, path)


def _start(config: DictConfig, run: RunFolder) -> tuple[PreparedDataset, list[Logger]]:
    _quiet()
    dataset = open_data(config)
    run.update(status=RunStatus.RUNNING, dataset_fingerprint=dataset.meta.fingerprint, git_commit=tracking.git_commit())
    loggers = tracking.build_loggers(config, run.path)
    tracking.log_summary(loggers, {"dataset_fingerprint": dataset.meta.fingerprint})
    return dataset, loggers


def _select(config: DictConfig, run: RunFolder, dataset: PreparedDataset, loggers: list[Logger]) -> None:
    """Train on the training part; the checkpoint with the best validation metric stays."""
    last = _last(run.checkpoints / "last.ckpt")
    module = build_module(config, dataset, _towers(config, run, dataset, fresh=last is None), mine=miner(config))
    data = _given(config, run, dataset)
    # Evaluation comes last, after a callback that puts averaged weights in place.
    named = _named_callbacks(config, run, run.checkpoints)
    callbacks = [*(c for _, c in named), KeepEarlyStopped(), _evaluation(config, dataset, module.model)]
    trainer = _trainer(config, run, callbacks, loggers)
    begin = time.monotonic()
    trainer.fit(module, data, ckpt_path=last, weights_only=True)
    seconds = time.monotonic() - begin
    trainer.save_checkpoint(run.checkpoints / "last.ckpt")
    best = run.checkpoints / "best.ckpt"
    if not any(isinstance(c, ModelCheckpoint) and c.best_model_path for c in callbacks):
        # Training was too short for a validation.
        trainer.save_checkpoint(best)
    load_weights(module.model, best)
    # Without the other callbacks, which would put averaged weights in the place of the selected ones.
    validator = _trainer(config, run, [_evaluation(config, dataset, module.model)], loggers)
    validator.validate(module, data, verbose=False)
    run.write_metrics(_logged(validator, "val/"))
    steps = int(torch.load(best, map_location="cpu", weights_only=True)["global_step"])
    speed = run.state.targets_per_second
    run.update(
        selected=steps,
        steps=trainer.global_step,
        schedule_steps=module.schedule_steps,
        # A run that was killed behind its last step has nothing left to measure.
        targets_per_second=round(module.num_targets / seconds, 1) if module.num_targets else speed,
    )
    distributed.barrier()


def _refit(config: DictConfig, run: RunFolder, dataset: PreparedDataset, loggers: list[Logger]) -> None:
    """Train a fresh model on train + val for the selected number of steps."""
    folder = run.checkpoints / "refit"
    last = _last(folder / "last.ckpt")
    model = _towers(config, run, dataset, fresh=last is None)
    module = build_module(config, dataset, model, run.state.schedule_steps, miner(config))
    callbacks = [c for name, c in _named_callbacks(config, run, folder) if name not in ("early_stopping", "best")]
    settings = {"max_steps": run.state.selected, "max_epochs": -1, "limit_val_batches": 0}
    trainer = _trainer(config, run, callbacks, loggers, **settings)
    trainer.fit(module, _given(config, run, dataset), ckpt_path=last, weights_only=True)
    trainer.save_checkpoint(run.checkpoints / "best.ckpt")
    run.update(refitted=True)
    distributed.barrier()


def _given(config: DictConfig, run: RunFolder, dataset: PreparedDataset) -> RetrievalData:
    """The data that training is given, noted: what a run learned from is not for its configuration to say."""
    run.update(train_until=dataset.train_until)
    return build_data(config, dataset)


def _towers(config: DictConfig, run: RunFolder, dataset: PreparedDataset, fresh: bool) -> TwoTower:
    """Both towers; if they are to be trained from the beginning, with the weights that they begin from."""
    model = build_towers(config, dataset, fresh)
    if fresh and config.warm_start is not None:
        earlier = open_earlier(config.warm_start)
        start_from(earlier, model, dataset)
        run.update(steps_before=earlier.steps)
    return model


def _test(config: DictConfig, run: RunFolder, dataset: PreparedDataset, loggers: list[Logger]) -> None:
    """Look at the test part with `best.ckpt`."""
    model = build_model(config, dataset)
    load_weights(model, run.checkpoints / "best.ckpt")
    module = EmbeddingModule(model)
    data = build_data(config, dataset)
    evaluation = _evaluation(config, dataset, model)
    trainer = _trainer(config, run, [evaluation], loggers)
    trainer.test(module, data, verbose=False)
    metrics = _logged(trainer, "test/")
    if config.evaluation.rolling:
        metrics |= rolling_metrics(config, dataset, model, data.builder)
    best = reachable(config, dataset, "test")
    metrics |= {f"test/best_reachable/{name}": value for name, value in best.items()}
    assert evaluation.metrics is not None
    run.write_per_user(per_user_table(dataset, evaluation.metrics))
    run.write_metrics(run.metrics | metrics)
    tracking.log_examples(loggers, lambda: examples(config, dataset, model, data.builder))


def _evaluation(config: DictConfig, dataset: PreparedDataset, model: Model) -> FullCorpusEvaluation:
    return FullCorpusEvaluation(dataset, corpus_of(model, dataset), config.exclude_seen, config.evaluation.metric)


def _trainer(
    config: DictConfig, run: RunFolder, callbacks: list[L.Callback], loggers: list[Logger], **settings: Any
) -> L.Trainer:
    trainer = instantiate(config.trainer, default_root_dir=str(run.path), **settings)
    return complete(trainer, callbacks=callbacks, logger=loggers, plugins=[AtomicCheckpointIO()])  # type: ignore[no-any-return]


def _named_callbacks(config: DictConfig, run: RunFolder, folder: Path) -> list[tuple[str, L.Callback]]:
    named = list(zip(config.callbacks, build_callbacks(config, folder), strict=True))
    for _, callback in named:
        if isinstance(callback, EMA):
            callback.steps_before = run.state.steps_before
    return named


def _logged(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}


def _last(checkpoint: Path) -> Path | None:
    return checkpoint if checkpoint.exists() else None


def _quiet() -> None:
    # Hardware summaries, advertisements and warnings that are true of every run here: no action follows from them.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    # Metrics are reduced over processes before they are logged.
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
