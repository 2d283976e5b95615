"""Answers of candidate and served release to the same test requests, measured once for all gates.

Shapes: R requests, K items shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from recsys.baselines.interactions import Interactions
from recsys.baselines.popularity import Popularity
from recsys.core.columns import Ragged
from recsys.core.types import Float32Array, Float64Array
from recsys.data.dataset import Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import Ranker
from recsys.evaluation.relevance import seen_items
from recsys.experiments.trained_run import TrainedRun
from recsys.index import Exact
from recsys.operations.gates.event_window import EventWindow
from recsys.operations.gates.judged_requests import JudgedRequests
from recsys.operations.gates.replay import Replay, replay
from recsys.publishing.recommenders import ReleaseRecommender
from recsys.release.runtime.retriever import Retriever
from recsys.serving.observability.samples import RequestSample

K = 100
_BLOCK = 1024
_EMBEDDED = 2048


class JudgedRelease:
    """One of the two compared releases, with its answers to the test requests.

    Args:
        retriever: opened release.
        judged: test requests.
        past: item embeddings [N, D], in the order of the index, of the time before the requests, if the index was built
            from later events. They are searched exactly instead of the index.
    """

    def __init__(self, retriever: Retriever, judged: JudgedRequests, past: Float32Array | None = None) -> None:
        self.retriever, self.judged = retriever, judged
        index = None
        if past is not None:
            index = Exact()
            index.build(past)
        self.recommender = ReleaseRecommender(retriever, judged.dataset, index=index)
        found = pc.index_in(retriever.items["item_id"].combine_chunks(), value_set=judged.dataset.item_ids)
        # item_idx in the data set of each row of the index; 0 for items that the data set does not have.
        self.item_idx = np.asarray(found.cast(pa.int64()).fill_null(-1)) + 1

    @cached_property
    def _ranked(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        answers = [
            self.recommender.rank(requests, K, exclude_seen=self.judged.exclude_seen, request_features={})
            for requests in _blocks(self.judged)
        ]
        scores, rows = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        return scores, np.where(rows >= 0, self.item_idx[np.maximum(rows, 0)], 0)

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """Scores of the shown items, [R, K]; -inf after the end of a list."""
        return self._ranked[0]

    @property
    def shown(self) -> npt.NDArray[np.int64]:
        """item_idx of the shown items, [R, K]; 0 after the end of a list and for items unknown to the data set."""
        return self._ranked[1]

    @cached_property
    def embeddings(self) -> npt.NDArray[np.float32]:
        """User embeddings of the first 2048 requests, [R, D] or [R, M, D]."""
        requests = Requests(*(column[:_EMBEDDED] for column in self.judged.requests))
        return self.retriever.tower(self.recommender.histories(requests))

    def measure(self, relevant: Ragged) -> tuple[dict[str, float], dict[str, Float64Array]]:
        """Return metrics of the shown items: means, and values of each request that has relevant items."""
        return measure(self.judged, self.shown, relevant=relevant)

    @cached_property
    def measured(self) -> tuple[dict[str, float], dict[str, Float64Array]]:
        """Result of `measure` for all relevant items."""
        return self.measure(self.judged.relevant)

    @property
    def metrics(self) -> dict[str, float]:
        """Mean of each metric over all requests with relevant items."""
        return self.measured[0]

    @cached_property
    def per_user(self) -> dict[str, Float64Array]:
        """Metrics of each request, recall by type of action included; nan if the request is not in the slice."""
        columns = dict(self.measured[1])
        for action, relevant in self.judged.relevant_of_actions.items():
            wants = np.diff(relevant.offsets) > 0
            rows = np.full(len(wants), np.nan)
            rows[wants] = self.measure(relevant)[1][f"recall@{K}"]
            columns[f"{action}/recall@{K}"] = rows[np.diff(self.judged.relevant.offsets) > 0]
        return columns


class NothingServedError(Exception):
    """A gate needs the served release, and nothing is served."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All measurements that gates can use.

    Attributes:
        run: run of the candidate.
        judged: test requests.
        candidate: answers of the candidate.
        served_side: answers of the served release; None if nothing is served.
        window: the new events and those before them.
        now: seconds; no real event is later.
        samples: sampled requests of users, oldest first.
    """

    run: TrainedRun
    judged: JudgedRequests
    candidate: JudgedRelease
    served_side: JudgedRelease | None
    window: EventWindow
    now: int
    samples: Sequence[RequestSample] = ()

    @property
    def served(self) -> JudgedRelease:
        """Answers of the served release.

        Raises:
            NothingServedError: If nothing is served.
        """
        if self.served_side is None:
            raise NothingServedError
        return self.served_side

    @cached_property
    def replay(self) -> Replay:
        """Answers of both releases to the sampled requests.

        Raises:
            NothingServedError: If nothing is served.
        """
        return replay(self.samples, self.candidate.retriever, served=self.served.retriever)

    @cached_property
    def popular(self) -> dict[str, Float64Array]:
        """Metrics of each request for one list of the items with the most training events."""
        dataset = self.judged.dataset
        ranker = Popularity()
        ranker.fit(Interactions(dataset, "train"))
        shown = _rank_all(ranker, self.judged)
        return measure(self.judged, shown, relevant=self.judged.relevant)[1]


def measure(
    judged: JudgedRequests, shown: npt.NDArray[np.int64], *, relevant: Ragged
) -> tuple[dict[str, float], dict[str, Float64Array]]:
    """Return the metrics of training's evaluation: means, and values of each request that has relevant items."""
    metrics = RetrievalMetrics(judged.dataset, max(1, judged.dataset.meta.num_known), keep_users=True)
    user_idx = torch.from_numpy(judged.requests.user_idx)
    for at in range(0, len(shown), _BLOCK):
        rows = np.arange(at, min(at + _BLOCK, len(shown)))
        metrics.update(torch.from_numpy(shown[rows]), relevant.take(rows), user_idx=user_idx[rows])
    _, columns = metrics.per_user()
    return metrics.compute(), {name: values.numpy().astype(np.float64) for name, values in columns.items()}


def _blocks(judged: JudgedRequests) -> Iterator[Requests]:
    for at in range(0, len(judged.requests.user_idx), _BLOCK):
        yield Requests(*(column[at : at + _BLOCK] for column in judged.requests))


def _rank_all(ranker: Ranker, judged: JudgedRequests) -> npt.NDArray[np.int64]:
    blocks = []
    for requests in _blocks(judged):
        exclude = seen_items(judged.dataset, requests) if judged.exclude_seen else None
        found: tuple[Tensor, Tensor] = ranker.rank(None, requests, k=K, exclude=exclude)  # type: ignore[arg-type]
        blocks.append(found[1].numpy())
    return np.concatenate(blocks)
