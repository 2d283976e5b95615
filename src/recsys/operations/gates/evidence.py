"""Candidate and served release on the same requests: what the gates look at, measured once.

Shapes: R requests, K items shown.
"""

from __future__ import annotations

from collections.abc import Sequence
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
# Columns with more values than this are no types of action.
_MOST_ACTIONS = 12


@dataclass(frozen=True)
class Requested:
    """The requests that both sides answer, and what they should have found.

    Attributes:
        dataset: where histories and answers are from.
        requests: R, one for each test user.
        exclude_seen: items of the history are neither shown nor wanted.
    """

    dataset: PreparedDataset
    requests: Requests
    exclude_seen: bool

    @cached_property
    def relevant(self) -> Ragged:
        """item_idx that each request wants."""
        return relevant_items(self.dataset, "test", self.requests, self.exclude_seen)

    def relevant_among(self, items: npt.NDArray[np.bool_]) -> Ragged:
        """Those of them that `items` bool [N + 1] holds."""
        return _keep(self.relevant, items[self.relevant.values])

    @cached_property
    def relevant_of_actions(self) -> dict[str, Ragged]:
        """`<column>=<value>` -> the wanted items that the user gives this value to, for columns of few values."""
        return {
            f"{feature.name}={value}": self._with_code(feature, code)
            for feature in action_columns(self.dataset)
            for code, value in enumerate(_vocabulary(self.dataset, feature), FIRST_CODE)
        }

    def _with_code(self, feature: Feature, code: int) -> Ragged:
        return self._wanted_at(np.asarray(self.dataset.columns[feature.key].values[self._places]) == code)

    def relevant_since(self, moment: int) -> tuple[Ragged, Ragged]:
        """What is wanted from a moment on, and what is wanted before it."""
        late = np.asarray(self.dataset.time[self._places]) >= moment
        return self._wanted_at(late), self._wanted_at(~late)

    @cached_property
    def _places(self) -> npt.NDArray[np.int64]:
        """Positions of the events after the histories, request by request."""
        end = self.dataset.offsets[1:][self.requests.user_idx]
        return ragged_positions(self.requests.end, end - self.requests.end)

    def _wanted_at(self, chosen: npt.NDArray[np.bool_]) -> Ragged:
        """The wanted items of the chosen of these events."""
        data, width = self.dataset, self.dataset.num_items + 1
        lengths = data.offsets[1:][self.requests.user_idx] - self.requests.end
        row = np.repeat(np.arange(len(lengths)), lengths)[chosen]
        keys = np.unique(row * width + data.item_idx[self._places[chosen]])
        owner = np.repeat(np.arange(len(self.relevant)), np.diff(self.relevant.offsets))
        return _keep(self.relevant, np.isin(owner * width + self.relevant.values, keys))


class Side:
    """What one release shows for the requests.

    Args:
        retriever: the release.
        asked: the requests.
    """

    def __init__(self, retriever: Retriever, asked: Requested) -> None:
        self.retriever, self.asked = retriever, asked
        self.recommender = ReleaseRecommender(retriever, asked.dataset)
        found = pc.index_in(retriever.items["item_id"].combine_chunks(), value_set=asked.dataset.item_ids)
        # item_idx in the data set of each row of the index; 0 for items that it does not have.
        self.item_idx = np.asarray(found.cast(pa.int64()).fill_null(-1)) + 1

    @cached_property
    def _ranked(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        requests = self.asked.requests
        blocks = [slice(at, at + _BLOCK) for at in range(0, len(requests.user_idx), _BLOCK)]
        answers = [
            self.recommender.rank(Requests(*(column[rows] for column in requests)), K, self.asked.exclude_seen, {})
            for rows in blocks
        ]
        scores, rows = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        return scores, np.where(rows >= 0, self.item_idx[np.maximum(rows, 0)], 0)

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """Of what is shown, [R, K]; -inf where there is nothing."""
        return self._ranked[0]

    @property
    def shown(self) -> npt.NDArray[np.int64]:
        """item_idx in the data set, [R, K]; 0 where there is nothing, or nothing that the data set knows."""
        return self._ranked[1]

    @cached_property
    def embeddings(self) -> npt.NDArray[np.float32]:
        """User embeddings of the requests, [R, D] or [R, M, D]; of the first so many."""
        requests = Requests(*(column[:_EMBEDDED] for column in self.asked.requests))
        return self.retriever.tower(self.recommender.histories(requests))

    def measure(self, relevant: Ragged) -> tuple[dict[str, float], dict[str, Float64Array]]:
        """Metrics of what is shown, and those of each request that wants anything."""
        return measure(self.asked, self.shown, relevant)

    @cached_property
    def measured(self) -> tuple[dict[str, float], dict[str, Float64Array]]:
        """As `measure`, of everything that is wanted."""
        return self.measure(self.asked.relevant)

    @property
    def metrics(self) -> dict[str, float]:
        """Means."""
        return self.measured[0]

    @cached_property
    def per_user(self) -> dict[str, Float64Array]:
        """Each metric of each request, nan where the request is not of the slice; recall by action included."""
        columns = dict(self.measured[1])
        for action, relevant in self.asked.relevant_of_actions.items():
            wants = np.diff(relevant.offsets) > 0
            rows = np.full(len(wants), np.nan)
            rows[wants] = self.measure(relevant)[1][f"recall@{K}"]
            columns[f"{action}/recall@{K}"] = rows[np.diff(self.asked.relevant.offsets) > 0]
        return columns


class NothingServedError(Exception):
    """A gate compares with what is served, and nothing is."""


@dataclass(frozen=True)
class Evidence:
    """What the gates may look at.

    Attributes:
        run: the candidate's.
        asked: the requests of the newest window.
        candidate: what it shows for them.
        served_now: what the served release shows for them; None: nothing is served yet.
        window: the new events and those before them.
        now: seconds; nothing that happened can be later.
        samples: requests that users made, oldest first.
    """

    run: TrainedRun
    asked: Requested
    candidate: Side
    served_now: Side | None
    window: EventWindow
    now: int
    samples: Sequence[Sample] = ()

    @property
    def served(self) -> Side:
        """What the served release shows.

        Raises:
            NothingServedError: there is none.
        """
        if self.served_now is None:
            raise NothingServedError
        return self.served_now

    @cached_property
    def replay(self) -> Replay:
        """What both releases give for the sampled requests.

        Raises:
            NothingServedError: there is no other.
        """
        return replay(self.samples, self.candidate.retriever, self.served.retriever)

    @cached_property
    def popular(self) -> dict[str, Float64Array]:
        """Metrics of each request for a list of the items with the most events."""
        dataset = self.asked.dataset
        ranker = Popularity()
        ranker.fit(Interactions(dataset, "train"))
        shown = _rank_all(ranker, self.asked)
        return measure(self.asked, shown, self.asked.relevant)[1]


def measure(
    asked: Requested, shown: npt.NDArray[np.int64], relevant: Ragged
) -> tuple[dict[str, float], dict[str, Float64Array]]:
    """Metrics as training's evaluation computes them, and those of each request that wants anything."""
    metrics = RetrievalMetrics(asked.dataset, max(1, asked.dataset.meta.num_known), keep_users=True)
    user_idx = torch.from_numpy(asked.requests.user_idx)
    for at in range(0, len(shown), _BLOCK):
        rows = np.arange(at, min(at + _BLOCK, len(shown)))
        metrics.update(torch.from_numpy(shown[rows]), relevant.take(rows), user_idx[rows])
    _, columns = metrics.per_user()
    return metrics.compute(), {name: values.numpy().astype(np.float64) for name, values in columns.items()}


def action_columns(dataset: PreparedDataset) -> list[Feature]:
    """Event features that say what kind of action an event was: categories of few values."""
    return [
        feature
        for feature in dataset.schema.with_role("event")
        if feature.kind == "categorical" and feature.size - FIRST_CODE <= _MOST_ACTIONS
    ]


def choose_requests(dataset: PreparedDataset, exclude_seen: bool, most: int | None) -> Requested:
    """The test requests of a data set, or so many of them, always the same."""
    requests = dataset.requests("test")
    if most is not None and len(requests.user_idx) > most:
        chosen = np.sort(np.random.default_rng(0).choice(len(requests.user_idx), most, replace=False))
        requests = Requests(*(column[chosen] for column in requests))
    return Requested(dataset, requests, exclude_seen)


def _rank_all(ranker: Ranker, asked: Requested) -> npt.NDArray[np.int64]:
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
