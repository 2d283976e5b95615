"""Answers of candidate and served release to the same test requests, measured once for all gates.

Shapes: R requests, K items shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from recsys.baselines.interactions import Interactions
from recsys.baselines.popularity import Popularity
from recsys.core.columns import Ragged, ragged_positions
from recsys.core.schema import FIRST_CODE, Feature
from recsys.core.types import Float64Array
from recsys.data.dataset import PreparedDataset, Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import Ranker
from recsys.evaluation.relevance import relevant_items, seen_items
from recsys.experiments.trained_run import TrainedRun
from recsys.operations.gates.event_window import EventWindow
from recsys.operations.gates.replay import Replay, replay
from recsys.publishing.recommenders import ReleaseRecommender
from recsys.release.runtime.retriever import Retriever
from recsys.serving.observability.samples import Sample

K = 100
_BLOCK = 1024
_EMBEDDED = 2048
# A column with more values than this does not hold types of action.
_MAX_ACTIONS = 12


@dataclass(frozen=True)
class TestRequests:
    """The test requests that both releases answer, and the items that they should find.

    Attributes:
        dataset: data set of the histories and of the relevant items.
        requests: R requests, one for each test user.
        exclude_seen: if true, items of the history are neither shown nor relevant.
    """

    __test__ = False  # Not a class of tests, although pytest would collect it by its name.

    dataset: PreparedDataset
    requests: Requests
    _: KW_ONLY
    exclude_seen: bool

    @cached_property
    def relevant(self) -> Ragged:
        """item_idx of the relevant items of each request."""
        return relevant_items(self.dataset, "test", self.requests, self.exclude_seen)

    def relevant_among(self, items: npt.NDArray[np.bool_]) -> Ragged:
        """Return the relevant items for which `items`, bool [N + 1], is true."""
        return _keep(self.relevant, items[self.relevant.values])

    @cached_property
    def relevant_of_actions(self) -> dict[str, Ragged]:
        """`<column>=<value>` -> relevant items with an event of this value, for columns with few values."""
        return {
            f"{feature.name}={value}": self._with_code(feature, code)
            for feature in action_columns(self.dataset)
            for code, value in enumerate(_vocabulary(self.dataset, feature), FIRST_CODE)
        }

    def _with_code(self, feature: Feature, code: int) -> Ragged:
        return self._relevant_at(np.asarray(self.dataset.columns[feature.key].values[self._places]) == code)

    def relevant_since(self, moment: int) -> tuple[Ragged, Ragged]:
        """Return the relevant items with an event at or after a moment, in seconds, and those with one before it."""
        late = np.asarray(self.dataset.time[self._places]) >= moment
        return self._relevant_at(late), self._relevant_at(~late)

    @cached_property
    def _places(self) -> npt.NDArray[np.int64]:
        """Positions of the events after the histories, request by request."""
        end = self.dataset.offsets[1:][self.requests.user_idx]
        return ragged_positions(self.requests.end, end - self.requests.end)

    def _relevant_at(self, chosen: npt.NDArray[np.bool_]) -> Ragged:
        """Return the relevant items of the chosen events among `_places`."""
        data, width = self.dataset, self.dataset.num_items + 1
        lengths = data.offsets[1:][self.requests.user_idx] - self.requests.end
        row = np.repeat(np.arange(len(lengths)), lengths)[chosen]
        keys = np.unique(row * width + data.item_idx[self._places[chosen]])
        owner = np.repeat(np.arange(len(self.relevant)), np.diff(self.relevant.offsets))
        return _keep(self.relevant, np.isin(owner * width + self.relevant.values, keys))


class Side:
    """One of the two compared releases, with its answers to the test requests.

    Args:
        retriever: opened release.
        asked: test requests.
    """

    def __init__(self, retriever: Retriever, asked: TestRequests) -> None:
        self.retriever, self.asked = retriever, asked
        self.recommender = ReleaseRecommender(retriever, asked.dataset)
        found = pc.index_in(retriever.items["item_id"].combine_chunks(), value_set=asked.dataset.item_ids)
        # item_idx in the data set of each row of the index; 0 for items that the data set does not have.
        self.item_idx = np.asarray(found.cast(pa.int64()).fill_null(-1)) + 1

    @cached_property
    def _ranked(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        requests = self.asked.requests
        blocks = [slice(at, at + _BLOCK) for at in range(0, len(requests.user_idx), _BLOCK)]
        answers = [
            self.recommender.rank(
                Requests(*(column[rows] for column in requests)),
                K,
                exclude_seen=self.asked.exclude_seen,
                request_features={},
            )
            for rows in blocks
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
        requests = Requests(*(column[:_EMBEDDED] for column in self.asked.requests))
        return self.retriever.tower(self.recommender.histories(requests))

    def measure(self, relevant: Ragged) -> tuple[dict[str, float], dict[str, Float64Array]]:
        """Return metrics of the shown items: means, and values of each request that has relevant items."""
        return measure(self.asked, self.shown, relevant=relevant)

    @cached_property
    def measured(self) -> tuple[dict[str, float], dict[str, Float64Array]]:
        """Result of `measure` for all relevant items."""
        return self.measure(self.asked.relevant)

    @property
    def metrics(self) -> dict[str, float]:
        """Mean of each metric over all requests with relevant items."""
        return self.measured[0]

    @cached_property
    def per_user(self) -> dict[str, Float64Array]:
        """Metrics of each request, recall by type of action included; nan if the request is not in the slice."""
        columns = dict(self.measured[1])
        for action, relevant in self.asked.relevant_of_actions.items():
            wants = np.diff(relevant.offsets) > 0
            rows = np.full(len(wants), np.nan)
            rows[wants] = self.measure(relevant)[1][f"recall@{K}"]
            columns[f"{action}/recall@{K}"] = rows[np.diff(self.asked.relevant.offsets) > 0]
        return columns


class NothingServedError(Exception):
    """A gate needs the served release, and nothing is served."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that the gates may look at.

    Attributes:
        run: run of the candidate.
        asked: test requests.
        candidate: answers of the candidate.
        served_now: answers of the served release; None if nothing is served.
        window: the new events and those before them.
        now: seconds; no real event is later.
        samples: sampled requests of users, oldest first.
    """

    run: TrainedRun
    asked: TestRequests
    candidate: Side
    served_now: Side | None
    window: EventWindow
    now: int
    samples: Sequence[Sample] = ()

    @property
    def served(self) -> Side:
        """Answers of the served release.

        Raises:
            NothingServedError: If nothing is served.
        """
        if self.served_now is None:
            raise NothingServedError
        return self.served_now

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
        dataset = self.asked.dataset
        ranker = Popularity()
        ranker.fit(Interactions(dataset, "train"))
        shown = _rank_all(ranker, self.asked)
        return measure(self.asked, shown, relevant=self.asked.relevant)[1]


def measure(
    asked: TestRequests, shown: npt.NDArray[np.int64], *, relevant: Ragged
) -> tuple[dict[str, float], dict[str, Float64Array]]:
    """Return the metrics of training's evaluation: means, and values of each request that has relevant items."""
    metrics = RetrievalMetrics(asked.dataset, max(1, asked.dataset.meta.num_known), keep_users=True)
    user_idx = torch.from_numpy(asked.requests.user_idx)
    for at in range(0, len(shown), _BLOCK):
        rows = np.arange(at, min(at + _BLOCK, len(shown)))
        metrics.update(torch.from_numpy(shown[rows]), relevant.take(rows), user_idx[rows])
    _, columns = metrics.per_user()
    return metrics.compute(), {name: values.numpy().astype(np.float64) for name, values in columns.items()}


def action_columns(dataset: PreparedDataset) -> list[Feature]:
    """Return the event features that hold types of action: categories with few values."""
    return [
        feature
        for feature in dataset.schema.with_role("event")
        if feature.kind == "categorical" and feature.size - FIRST_CODE <= _MAX_ACTIONS
    ]


def choose_requests(dataset: PreparedDataset, exclude_seen: bool, *, most: int | None) -> TestRequests:
    """Return the test requests of a data set, or a fixed sample of `most` of them."""
    requests = dataset.requests("test")
    if most is not None and len(requests.user_idx) > most:
        chosen = np.sort(np.random.default_rng(0).choice(len(requests.user_idx), most, replace=False))
        requests = Requests(*(column[chosen] for column in requests))
    return TestRequests(dataset, requests, exclude_seen=exclude_seen)


def _rank_all(ranker: Ranker, asked: TestRequests) -> npt.NDArray[np.int64]:
    blocks = []
    for at in range(0, len(asked.requests.user_idx), _BLOCK):
        requests = Requests(*(column[at : at + _BLOCK] for column in asked.requests))
        exclude = seen_items(asked.dataset, requests) if asked.exclude_seen else None
        found: tuple[Tensor, Tensor] = ranker.rank(None, requests, K, exclude)  # type: ignore[arg-type]
        blocks.append(found[1].numpy())
    return np.concatenate(blocks)


def _keep(rows: Ragged, kept: npt.NDArray[np.bool_]) -> Ragged:
    owner = np.repeat(np.arange(len(rows)), np.diff(rows.offsets))
    counts = np.bincount(owner[kept], minlength=len(rows))
    return Ragged(rows.values[kept], np.concatenate([[0], np.cumsum(counts)]))


def _vocabulary(dataset: PreparedDataset, feature: Feature) -> list[str]:
    values = dataset.vocabulary(feature)
    return [] if values is None else [str(value) for value in values.to_pylist()]
