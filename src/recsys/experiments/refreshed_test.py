"""Evaluation of daily index builds: the towers stay as they are, and item biases are computed again for each day."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import DictConfig

from recsys.core import distributed
from recsys.core.errors import UserError
from recsys.core.index_time import DAY, IndexTime
from recsys.core.progress import track
from recsys.data.batches.builder import BatchBuilder
from recsys.data.batches.loaders import RequestLoader
from recsys.data.dataset import PreparedDataset, Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import ModelRanker, RequestCounter, encode_corpus
from recsys.evaluation.relevance import rolling_requests
from recsys.experiments.assembly import corpus_of
from recsys.experiments.item_biases import set_bias
from recsys.models.blend import Model, kept_biases, write_bias


def check_refresh(config: DictConfig, dataset: PreparedDataset) -> None:
    """Refuse `evaluation.refresh_days` of a wrong value, or of data without a clock.

    Raises:
        UserError: If it is neither null nor a whole number from 1, or the times of events are no days.
    """
    days = config.evaluation.get("refresh_days")
    if days is None:
        return
    if isinstance(days, bool) or not isinstance(days, int) or days < 1:
        raise UserError(f"evaluation.refresh_days: found {days}, expected a whole number from 1, or null")
    if not dataset.meta.time_resolution.has_clock:
        raise UserError(
            f"evaluation.refresh_days={days}: data.time={dataset.meta.time_resolution} has no days; expected seconds "
            "or day. Type evaluation.refresh_days=null"
        )


def refreshed_metrics(
    config: DictConfig, dataset: PreparedDataset, *, model: Model, builder: BatchBuilder
) -> dict[str, float]:
    """Return `test_refreshed/*`, for which each test event is a request to the newest of indexes built daily.

    An index is built every `evaluation.refresh_days` from the first test event on. Its biases (item priors and
    `model.prior_shift`) are those of the events before it and of the ages in the time that it serves. Its corpus are
    the items born before that time ends, or all items if the data has no births. The history of a request has all
    events before it. The model keeps its present biases.
    """
    corpus = corpus_of(model, dataset)
    items = torch.from_numpy(corpus).to(model.device)
    embeddings = encode_corpus(model.eval(), items)
    ranker = ModelRanker(model, corpus, embeddings=embeddings)
    metrics = RetrievalMetrics(dataset, len(corpus))
    process = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    builds = list(index_builds(dataset, config.evaluation.refresh_days))
    with kept_biases(model):
        for index_time, requests in track(builds, "refreshed test", total=len(builds), unit="indexes"):
            set_bias(model, dataset, config=config, index_time=index_time)
            write_bias(model, embeddings, item_idx=items)
            search = ranker.search.among(born_before(dataset, index_time.now + int(index_time.horizon_days * DAY)))
            if search is None:
                continue
            counter = RequestCounter(
                search, dataset, part="test", metrics=metrics, exclude_seen=config.exclude_seen, rolling=True
            )
            for batch, some in RequestLoader(builder, requests, **process):
                counter.count(ranker.encode(batch), some)
    return {f"test_refreshed/{name}": value for name, value in metrics.compute().items()}


def index_builds(dataset: PreparedDataset, days: int) -> Iterator[tuple[IndexTime, Requests]]:
    """Yield the time of each index that serves test events, and one request for each of these events.

    Args:
        dataset: data set whose times have a clock.
        days: days from one build to the next, from the first test event on.
    """
    requests = rolling_requests(dataset, "test")
    if not len(requests.end):
        return
    time = np.asarray(dataset.time[requests.end])
    begin = int(time.min())
    number = (time - begin) // (days * DAY)
    order = np.argsort(number, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(number[order])) + 1):
        now = begin + int(number[rows[0]]) * days * DAY
        yield IndexTime(now, float(days)), Requests(*(column[rows] for column in requests))


def born_before(dataset: PreparedDataset, moment: int) -> npt.NDArray[np.bool_]:
    """Return a mask bool [N + 1] of the items born before a moment; all items without births."""
    if dataset.born is None:
        return np.ones(dataset.num_items + 1, bool)
    # The birth of an item without one is the least integer.
    return np.asarray(dataset.born < moment)
