"""Evaluation of a run on the test part: one list for each user, every event as a request, and examples to look at."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from omegaconf import DictConfig

from recsys.core.progress import track
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.datamodule import RetrievalData
from recsys.data.dataset import PreparedDataset, Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import ModelRanker, evaluate, per_user_table
from recsys.evaluation.relevance import rolling_requests, seen_items
from recsys.experiments.assembly import build_data, build_model, corpus_of, oracle_metrics
from recsys.experiments.fitting import (
    BEST,
    TrainingSession,
    build_evaluation,
    build_trainer,
    count_parameters,
    free_tables,
    logged_metrics,
)
from recsys.experiments.loggers import log_examples
from recsys.experiments.refreshed_test import refreshed_metrics
from recsys.experiments.trained_run import load_weights
from recsys.models.blend import Model
from recsys.models.sharded_table import sharded_tables
from recsys.training.module import EmbeddingModule


def measure_on_test(session: TrainingSession) -> None:
    """Measure `best.ckpt` on the test part and write the metrics of the run and of its users."""
    config, run, dataset = session.config, session.run, session.dataset
    free_tables(dataset)
    model = build_model(config, dataset, divided="row_wise")
    load_weights(model, run.checkpoints / BEST)
    data = build_data(config, dataset)
    evaluation = build_evaluation(session, model)
    trainer = build_trainer(session, [evaluation])
    trainer.test(EmbeddingModule(model), data, verbose=False)
    metrics = logged_metrics(trainer, "test/")
    if config.evaluation.rolling:
        metrics |= rolling_metrics(config, data, model)
    if config.evaluation.get("refresh_days") is not None:
        metrics |= refreshed_metrics(config, dataset, model=model, builder=data.builder)
    metrics |= oracle_metrics(config, dataset, part="test")
    assert evaluation.metrics is not None
    run.write_per_user(per_user_table(dataset, evaluation.metrics))
    run.write_metrics(run.metrics | metrics)
    run.update(parameters=count_parameters(model))
    shown = functools.cache(lambda: examples(config, dataset, model=model, builder=data.builder))
    if config.logger.project is not None and sharded_tables(model):
        # The first process alone logs them, but all must look up the rows that they share.
        shown()
    log_examples(session.loggers, shown)


def rolling_metrics(config: DictConfig, data: RetrievalData, model: Model) -> dict[str, float]:
    """Return `test_rolling/*`, for which each test event is a request with all events before it as history."""
    dataset = data.dataset
    corpus = corpus_of(model, dataset)
    requests = data.answer(rolling_requests(dataset, "test"))
    batches = track(requests, "rolling test", total=len(requests), unit="batches")
    metrics = RetrievalMetrics(dataset, len(corpus))
    ranker = ModelRanker(model.eval(), corpus)
    own = requests.builder.dataset
    values = evaluate(
        ranker, own, part="test", batches=batches, metrics=metrics, exclude_seen=config.exclude_seen, rolling=True
    )
    return {f"test_rolling/{name}": value for name, value in values.items()}


def examples(
    config: DictConfig, dataset: PreparedDataset, *, model: Model, builder: BatchBuilder
) -> dict[str, list[Any]]:
    """Return history, test events and recommendations of `logger.examples` test users, as outside ids."""
    requests = Requests(*(column[: config.logger.examples] for column in dataset.requests("test")))
    ranker = ModelRanker(model.eval(), corpus_of(model, dataset))
    exclude = seen_items(dataset, requests) if config.exclude_seen else None
    _, ranked = ranker.rank(builder.requests(requests), requests, k=10, exclude=exclude)

    def ids(item_idx: npt.NDArray[np.integer]) -> str:
        return " ".join(map(str, dataset.item_ids.take(pa.array(item_idx[item_idx > 0] - 1)).to_pylist()))

    begin, end = dataset.offsets[requests.user_idx], dataset.offsets[requests.user_idx + 1]
    bounds = list(zip(begin, requests.end, end, strict=True))
    return {
        "user_id": [str(user) for user in dataset.user_ids.take(pa.array(requests.user_idx)).to_pylist()],
        "history": [ids(dataset.item_idx[max(first, now - 10) : now]) for first, now, _ in bounds],
        "test": [ids(dataset.item_idx[now : min(now + 10, last)]) for _, now, last in bounds],
        "recommended": [ids(row) for row in ranked.numpy()],
    }
