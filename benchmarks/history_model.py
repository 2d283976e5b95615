"""The recorded history of `serving_history.py`, and the model that it is checked against.

Each operation has the times at which it began and ended. What was acknowledged before another operation began must be
visible to it; what began before the other one ended may be visible.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

# Rounding of a tower that answers several requests at once.
TOLERANCE = 1e-4


class Stored(NamedTuple):
    """An event that a client posted: acknowledged, or without an answer (it may be stored)."""

    user: str
    item: int
    ended: float
    is_acknowledged: bool


class TakenDown(NamedTuple):
    """A takedown; `ended` is infinite until it was acknowledged."""

    item: int
    began: float
    ended: float


class Read(NamedTuple):
    """An answer to a user whose events are stored: the events that the tower read."""

    user: str
    began: float
    items: frozenset[int]
    is_missing: bool


class Asked(NamedTuple):
    """An answer to a query of the model: its versions and ranked items with scores."""

    query: int
    began: float
    ended: float
    versions: tuple[str, ...]
    items: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass
class History:
    """All operations of a run; several threads add to it. `is_calm` is set while nothing is broken."""

    stored: list[Stored] = field(default_factory=list)
    taken_down: list[TakenDown] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_calm: threading.Event = field(default_factory=threading.Event)

    def add(self, operation: NamedTuple) -> None:
        """Add an operation."""
        kinds: dict[type, list[Any]] = {
            Stored: self.stored, TakenDown: self.taken_down, Read: self.reads, Asked: self.asked
        }  # fmt: skip
        kinds[type(operation)].append(operation)

    def count(self, what: str, status: int) -> None:
        """Count an answer."""
        with self.lock:
            self.statuses[f"{what} {status or 'no answer'}"] += 1


@dataclass(frozen=True)
class Model:
    """What releases answer.

    Attributes:
        items: ids of the items, [N].
        scores: (version of the tower, version of the index) -> score of each item for each query, [Q, N].
        seen: items of each query's history, which are not returned.
        k: number of items of an answer.
    """

    items: Sequence[int]
    scores: dict[tuple[str, str], np.ndarray]
    seen: Sequence[frozenset[int]]
    k: int


def check(history: History, model: Model, kept: dict[str, frozenset[int]]) -> list[str]:
    """Return what is wrong; `kept` are the items of each user's events in the store after the run."""
    return [*_lost(history, kept), *_unseen(history), *_answers(history, model)]


def _lost(history: History, kept: dict[str, frozenset[int]]) -> list[str]:
    return [
        f"lost: user {one.user}, item {one.item}"
        for one in history.stored
        if one.is_acknowledged and one.item not in kept.get(one.user, frozenset())
    ]


def _unseen(history: History) -> list[str]:
    acknowledged: dict[str, list[Stored]] = {}
    for one in history.stored:
        if one.is_acknowledged:
            acknowledged.setdefault(one.user, []).append(one)
    return [
        f"unseen: user {read.user}, item {one.item}"
        for read in history.reads
        if not read.is_missing
        for one in acknowledged.get(read.user, ())
        if one.ended < read.began and one.item not in read.items
    ]


def _is_close(expected: np.ndarray, found: Sequence[float]) -> bool:
    return bool(np.abs(expected - np.array(found)).max(initial=0) <= TOLERANCE)


def _answers(history: History, model: Model) -> list[str]:
    row_of = {item: row for row, item in enumerate(model.items)}
    wrong = []
    for one in history.asked:
        pair = (one.versions[0], one.versions[0])
        if len(set(one.versions)) != 1 or pair not in model.scores:
            wrong.append(f"mixed: versions {one.versions}")
            continue
        removed = {taken.item for taken in history.taken_down if taken.ended < one.began}
        maybe = {taken.item for taken in history.taken_down if taken.began < one.ended}
        if stale := removed & set(one.items):
            wrong.append(f"stale: query {one.query} got {sorted(stale)} after their takedown")
        rows = [row_of[item] for item in one.items]
        of_pairs = {pair: scores[one.query] for pair, scores in model.scores.items()}
        fits = [found for found, scores in of_pairs.items() if _is_close(scores[rows], one.scores)]
        scores, expected = of_pairs[pair], of_pairs[pair][rows]
        if pair not in fits:
            wrong.append(
                f"mixed: query {one.query}, {one.versions[0]}: the scores are those of {fits or 'no pair'}: {one}"
            )
            continue
        # A gateway may leave out an item that a host has not removed yet, if that host found it.
        shown = np.array([item not in removed and item not in model.seen[one.query] for item in model.items])
        least = np.sort(scores[shown])[-model.k :].min(initial=np.inf) - 2 * TOLERANCE
        unsure = sum(shown[row_of[item]] and scores[row_of[item]] >= least for item in maybe - removed)
        if not model.k - unsure <= len(rows) <= model.k:
            wrong.append(f"wrong: query {one.query} got {len(rows)} items")
            continue
        better = {model.items[int(row)] for row in np.flatnonzero(scores > expected.min() + 2 * TOLERANCE)}
        if left_out := better - set(one.items) - maybe - model.seen[one.query]:
            wrong.append(f"wrong: query {one.query} misses {sorted(left_out)}")
    return wrong
