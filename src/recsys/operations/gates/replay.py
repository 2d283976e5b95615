"""Repeats sampled requests of users on two releases alternately. R requests."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from recsys.core.errors import UserError
from recsys.core.types import Float64Array
from recsys.data.dataset import PreparedDataset
from recsys.release.runtime.item_ids import IdMap
from recsys.release.runtime.retriever import Answer, Retriever, seen_items
from recsys.serving.observability.samples import RequestSample

# The first requests are not timed, because reading something for the first time takes longer.
_WARM_UP = 10


class ReplayedAnswer(NamedTuple):
    """Answer of one release to one sampled request.

    Attributes:
        answer: None if the request failed.
        problem: error message; empty if there is an answer.
        unknown: share of the history's distinct items that the release does not know; nan without a history.
        seconds: time from request to answer.
    """

    answer: Answer | None
    problem: str
    unknown: float
    seconds: float

    @property
    def item_ids(self) -> list[int | str]:
        """Ids of the shown items, best first."""
        return [] if self.answer is None else self.answer.item_ids


@dataclass(frozen=True)
class Replay:
    """Answers of both releases to the same requests.

    Attributes:
        samples: the requests, R.
        candidate, served: the answers, R each.
    """

    samples: Sequence[RequestSample]
    candidate: Sequence[ReplayedAnswer]
    served: Sequence[ReplayedAnswer]

    def num_wanted(self) -> npt.NDArray[np.int64]:
        """Return the number of items that each request asked for, [R]."""
        return np.array([sample.request.k for sample in self.samples])

    def hits(self, dataset: PreparedDataset) -> tuple[Float64Array, Float64Array]:
        """Return hit rates of candidate and served release for each user with later events; float64 [users].

        A request is a hit if the list holds an item of the user's events in the test part after the request. Events
        before the test part do not count, because the candidate was trained on them.
        """
        users, items = IdMap(dataset.user_ids), IdMap(dataset.item_ids)
        rows = users.rows([sample.request.user_id for sample in self.samples])
        found: dict[int, list[tuple[bool, bool]]] = {}
        for row, sample, ours, theirs in zip(rows.tolist(), self.samples, self.candidate, self.served, strict=True):
            if row < 0:
                continue
            events = slice(int(dataset.val_end[row]), int(dataset.offsets[row + 1]))
            after = np.asarray(dataset.time[events]) > sample.at
            wanted = {*np.asarray(dataset.item_idx[events])[after].tolist()}
            wanted -= {*(items.rows(_excluded(sample)) + 1).tolist()}
            if wanted:
                hit = [not wanted.isdisjoint((items.rows(side.item_ids) + 1).tolist()) for side in (ours, theirs)]
                found.setdefault(row, []).append((hit[0], hit[1]))
        # Requests of one user are not independent, so each user counts once.
        means = np.array([np.mean(pairs, axis=0) for pairs in found.values()], np.float64).reshape(-1, 2)
        return means[:, 0], means[:, 1]


def replay(samples: Sequence[RequestSample], candidate: Retriever, *, served: Retriever) -> Replay:
    """Send each request to both releases, one request at a time and alternately, so that load slows both alike."""
    answers: tuple[list[ReplayedAnswer], list[ReplayedAnswer]] = ([], [])
    sides = candidate, served
    for sample in samples[:_WARM_UP]:
        for retriever in sides:
            _retrieve(retriever, sample)
    for number, sample in enumerate(samples):
        for which in (0, 1) if number % 2 else (1, 0):
            answers[which].append(_retrieve(sides[which], sample))
    return Replay(samples, *answers)


def _retrieve(retriever: Retriever, sample: RequestSample) -> ReplayedAnswer:
    request = sample.request
    begin = time.perf_counter()
    try:
        query = sample.query(retriever.query_encoder)
        (answer,) = retriever.retrieve([query], request.k, exclude_seen=request.exclude_seen, filter=request.filter)
    except UserError as error:
        return ReplayedAnswer(None, f"refused: {error}", np.nan, np.nan)
    except Exception as error:
        # A server would answer this request with status 500 for any error.
        return ReplayedAnswer(None, f"{type(error).__name__}: {error}", np.nan, np.nan)
    seconds = time.perf_counter() - begin
    distinct = {*seen_items(query)}
    unknown = len(answer.unknown_items) / len(distinct) if distinct else np.nan
    return ReplayedAnswer(answer, "", unknown, seconds)


def _excluded(sample: RequestSample) -> list[int | str]:
    history = sample.history if sample.history is not None else sample.request.history or ()
    seen = [event["item_id"] for event in history] if sample.request.exclude_seen else []
    return [*seen, *(sample.request.exclude or ())]
