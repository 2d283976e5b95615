"""Sampled requests of users, asked again of two releases in turns. R requests."""

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
from recsys.serving.observability.samples import Sample

# Asked first and not counted: what is read for the first time takes longer.
_WARM_UP = 10


class Given(NamedTuple):
    """What one release gave for one request.

    Attributes:
        answer: None where there is none.
        problem: why not; empty where there is one.
        unknown: share of the history's distinct items that the release does not know; nan without a history.
        seconds: from request to answer.
    """

    answer: Answer | None
    problem: str
    unknown: float
    seconds: float

    @property
    def item_ids(self) -> list[int | str]:
        """Best first."""
        return [] if self.answer is None else self.answer.item_ids


@dataclass(frozen=True)
class Replay:
    """Both releases on the same requests.

    Attributes:
        samples: R.
        candidate, served: R each.
    """

    samples: Sequence[Sample]
    candidate: Sequence[Given]
    served: Sequence[Given]

    def num_wanted(self) -> npt.NDArray[np.int64]:
        """Items that each request asked for."""
        return np.array([sample.asked["k"] for sample in self.samples])

    def hits(self, dataset: PreparedDataset) -> tuple[Float64Array, Float64Array]:
        """Hit rates of the users who did something afterwards, of candidate and served release; float64 [users].

        A request is a hit where the list holds an item of the user's events in the test part after the request. Events
        before the test part are none: the candidate learned from them.
        """
        users, items = IdMap(dataset.user_ids), IdMap(dataset.item_ids)
        rows = users.rows([sample.asked["user_id"] for sample in self.samples])
        found: dict[int, list[tuple[bool, bool]]] = {}
        for row, sample, ours, theirs in zip(rows.tolist(), self.samples, self.candidate, self.served, strict=True):
            if row < 0:
                continue
            events = slice(int(dataset.val_end[row]), int(dataset.offsets[row + 1]))
            after = np.asarray(dataset.time[events]) > sample.at
            wanted = {*np.asarray(dataset.item_idx[events])[after].tolist()}
            wanted -= {*(items.rows(_hidden(sample)) + 1).tolist()}
            if wanted:
                hit = [not wanted.isdisjoint((items.rows(side.item_ids) + 1).tolist()) for side in (ours, theirs)]
                found.setdefault(row, []).append((hit[0], hit[1]))
        # Requests of one user are no independent ones.
        means = np.array([np.mean(pairs, axis=0) for pairs in found.values()], np.float64).reshape(-1, 2)
        return means[:, 0], means[:, 1]


def replay(samples: Sequence[Sample], candidate: Retriever, served: Retriever) -> Replay:
    """Ask both the same, one request at a time, in turns, so that a busy machine slows both."""
    given: tuple[list[Given], list[Given]] = ([], [])
    sides = candidate, served
    for sample in samples[:_WARM_UP]:
        for retriever in sides:
            _ask(retriever, sample)
    for number, sample in enumerate(samples):
        for which in (0, 1) if number % 2 else (1, 0):
            given[which].append(_ask(sides[which], sample))
    return Replay(samples, *given)


def _ask(retriever: Retriever, sample: Sample) -> Given:
    asked = sample.asked
    begin = time.perf_counter()
    try:
        query = sample.query(retriever.query_encoder)
        (answer,) = retriever.retrieve([query], asked["k"], asked["exclude_seen"], asked["filter"])
    except UserError as error:
        return Given(None, f"refused: {error}", np.nan, np.nan)
    except Exception as error:
        # Whatever it is: its users would get a 500 for it.
        return Given(None, f"{type(error).__name__}: {error}", np.nan, np.nan)
    seconds = time.perf_counter() - begin
    distinct = {*seen_items(query)}
    unknown = len(answer.unknown_items) / len(distinct) if distinct else np.nan
    return Given(answer, "", unknown, seconds)


def _hidden(sample: Sample) -> list[int | str]:
    """Items that the request did not want."""
    history = sample.history if sample.history is not None else sample.asked["history"] or ()
    seen = [event["item_id"] for event in history] if sample.asked["exclude_seen"] else []
    return [*seen, *(sample.asked["exclude"] or ())]
