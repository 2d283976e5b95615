"""One run, from configuration to a run folder; killed at any moment and started again, it goes on."""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa
import torch
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from recsys import tracking
from recsys.build import (
    build_callbacks,
    build_data,
    build_model,
    build_module,
    complete,
    corpus_of,
    instantiate,
    load_weights,
    open_data,
)
from recsys.data.dataset import PreparedDataset
from recsys.data.loader import RequestLoader
from recsys.evaluation.callback import FullCorpusEvaluation
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import ModelRanker, evaluate
from recsys.evaluation.relevance import rolling_requests
from recsys.module import RetrievalModule
from recsys.tracking import RunFolder


def train(config: DictConfig, path: Path) -> RunFolder:
    """Fit, refit if asked, evaluate, and leave the run folder.

    A finished run is returned as it is; one that was killed goes on from its last checkpoint.

    Args:
        config: composed from `conf/train.yaml`.
        path: of the run folder.
    """
    _quiet()
    run = RunFolder(path, config)
    if run.state.get("status") == "finished":
        return run
    begin = time.monotonic()
    before = run.state.get("seconds", 0.0)
    dataset = open_data(config)
    run.update(
        status="running", dataset_fingerprint=dataset.meta.fingerprint, git_commit=tracking.git_commit(), seconds=before
    )
    loggers = tracking.build_loggers(config, path)
    tracking.log_summary(loggers, {"dataset_fingerprint": dataset.meta.fingerprint})

    if "selected" not in run.state:
        _select(config, run, dataset, loggers)
        run.update(seconds=before + time.monotonic() - begin)
    if config.refit:
        dataset = dataset.refit()
        if "refitted" not in run.state:
            _refit(config, run, dataset, loggers)
    _test(config, run, dataset, loggers)
    run.update(
        status="finished",
        seconds=round(before + time.monotonic() - begin, 1),
        peak_memory_bytes=tracking.peak_memory_bytes(),
    )
    tracking.log_summary(loggers, {**run.state, **run.metrics})
    tracking.log_checkpoint(loggers, path, dataset.meta.fingerprint)
    tracking.close(loggers)
    return run


def _select(config: DictConfig, run: RunFolder, dataset: PreparedDataset, loggers: list[Logger]) -> None:
    """Train on the training part; the checkpoint with the best validation metric stays."""
    module = build_module(config, dataset, build_model(config, dataset))
    data = build_data(config, dataset)
    evaluation = FullCorpusEvaluation(dataset, corpus_of(module.model, dataset), config.exclude_seen)
    # Evaluation comes first: checkpoints and early stopping read what it logs.
    callbacks = [evaluation, *build_callbacks(config, run.checkpoints)]
    trainer = _trainer(config, run, callbacks, loggers)
    begin = time.monotonic()
    trainer.fit(module, data, ckpt_path=_last(run.checkpoints / "last.ckpt"), weights_only=True)
    seconds = time.monotonic() - begin
    trainer.save_checkpoint(run.checkpoints / "last.ckpt")
    best = run.checkpoints / "best.ckpt"
    if not best.exists():
        # Training was too short for a validation.
        trainer.save_checkpoint(best)
    load_weights(module.model, best)
    trainer.validate(module, data, verbose=False)
    run.write_metrics(_logged(trainer, "val/"))
    steps = int(torch.load(best, map_location="cpu", weights_only=True)["global_step"])
    run.update(
        selected=steps,
        steps=trainer.global_step,
        schedule_steps=module.schedule_steps,
        targets_per_second=round(module.num_targets / seconds, 1),
    )


def _refit(config: DictConfig, run: RunFolder, dataset: PreparedDataset, loggers: list[Logger]) -> None:
    """Train a fresh model on train + val for the selected number of steps."""
    model = build_model(config, dataset)
    module = build_module(config, dataset, model, schedule_steps=run.state["schedule_steps"])
    folder = run.checkpoints / "refit"
    callbacks = [c for name, c in _named_callbacks(config, folder) if name not in ("early_stopping", "best")]
    settings = {"max_steps": run.state["selected"], "max_epochs": -1, "limit_val_batches": 0}
    trainer = _trainer(config, run, callbacks, loggers, **settings)
    trainer.fit(module, build_data(config, dataset), ckpt_path=_last(folder / "last.ckpt"), weights_only=True)
    trainer.save_checkpoint(run.checkpoints / "refitted.ckpt")
    (run.checkpoints / "refitted.ckpt").replace(run.checkpoints / "best.ckpt")
    run.update(refitted=True)


def _test(config: DictConfig, run: RunFolder, dataset: PreparedDataset, loggers: list[Logger]) -> None:
    """Look at the test part with `best.ckpt`."""
    module = build_module(config, dataset, build_model(config, dataset))
    load_weights(module.model, run.checkpoints / "best.ckpt")
    data = build_data(config, dataset)
    corpus = corpus_of(module.model, dataset)
    evaluation = FullCorpusEvaluation(dataset, corpus, config.exclude_seen)
    trainer = _trainer(config, run, [evaluation], loggers)
    trainer.test(module, data, verbose=False)
    metrics = _logged(trainer, "test/")
    if config.evaluation.rolling:
        metrics |= _rolling(config, dataset, module, data.builder)
    assert evaluation.metrics is not None
    users, columns = evaluation.metrics.per_user()
    table = {"user_id": dataset.user_ids.take(pa.array(users.numpy()))}
    run.write_per_user(pa.table(table | {name: values.numpy() for name, values in columns.items()}))
    run.write_metrics(run.metrics | metrics)


def _rolling(config: DictConfig, dataset: PreparedDataset, module: RetrievalModule, builder: Any) -> dict[str, float]:
    corpus = corpus_of(module.model, dataset)
    requests = RequestLoader(builder, rolling_requests(dataset, "test"))
    metrics = RetrievalMetrics(dataset, len(corpus))
    ranker = ModelRanker(module.model.eval(), corpus)
    values = evaluate(ranker, dataset, "test", requests, metrics, config.exclude_seen, rolling=True)
    return {f"test_rolling/{name}": value for name, value in values.items()}


def _trainer(
    config: DictConfig, run: RunFolder, callbacks: list[L.Callback], loggers: list[Logger], **settings: Any
) -> L.Trainer:
    trainer = instantiate(config.trainer, default_root_dir=str(run.path), **settings)
    return complete(trainer, callbacks=callbacks, logger=loggers)  # type: ignore[no-any-return]


def _named_callbacks(config: DictConfig, folder: Path) -> list[tuple[str, L.Callback]]:
    return list(zip(config.callbacks, build_callbacks(config, folder), strict=True))


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
