"""Items that a run finds and misses for its test users, by groups of users and items.

Shapes: R users with relevant items, K items shown, P pairs of a user and a relevant item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.core.columns import ragged_positions
from recsys.data.batches.loaders import RequestLoader
from recsys.data.dataset import PreparedDataset, Requests
from recsys.evaluation.ranking import ModelRanker
from recsys.evaluation.relevance import relevant_items, seen_items
from recsys.evaluation.significance import paired_bootstrap
from recsys.experiments.trained_run import TrainedRun
from recsys.reports.analysis.item_descriptions import ItemDescriptions

Ints = npt.NDArray[np.int64]
_DAY = 86_400
_HISTORY = (0, 1, 5, 10, 20, 50, 100)
_EVENTS = (0, 1, 5, 20, 100, 500)
_DAYS = (0, 1, 7, 30, 90, 365)
# Smaller groups are left out.
_FEWEST_USERS = 5
_CATEGORIES = 12


@dataclass(frozen=True)
class Results:
    """Items shown to users, and their relevant items.

    Attributes:
        requests: users and ends of their histories, [R].
        shown: item_idx int64 [R, K], 0 after the end of a list.
        row: position of each pair's user in `requests`, [P].
        item_idx: relevant item, [P].
        found: whether the item is among those shown, bool [P].
        age_days: days between the item's first event and the user's event, [P]; None without times.
    """

    dataset: PreparedDataset
    requests: Requests
    shown: Ints
    row: Ints
    item_idx: Ints
    found: npt.NDArray[np.bool_]
    age_days: npt.NDArray[np.float64] | None

    @property
    def k(self) -> int:
        """Number of items shown to each user."""
        return int(self.shown.shape[1])

    @property
    def recall(self) -> npt.NDArray[np.float64]:
        """Recall of each user, [R]."""
        return np.bincount(self.row, self.found) / np.bincount(self.row)

    @property
    def history_length(self) -> Ints:
        """Number of each user's events before the test part, [R]."""
        return self.requests.end - self.dataset.offsets[self.requests.user_idx]


@dataclass(frozen=True)
class Group:
    """Recall in a group of users or items: the mean over its users with relevant items, with its 95% interval."""

    kind: str
    label: str
    recall: float
    low: float
    high: float
    num_users: int
    num_pairs: int


def examine(run: TrainedRun, k: int = 10, *, num_users: int = 20_000) -> Results:
    """Rank items for test users in the same way as the run's evaluation.

    Args:
        run: finished run.
        k: number of items to show.
        num_users: maximum number of test users; more are sampled with a fixed seed.
    """
    data, exclude_seen = run.dataset, bool(run.config.exclude_seen)
    requests = data.requests("test")
    if len(requests.user_idx) > num_users:
        drawn = np.sort(np.random.default_rng(0).choice(len(requests.user_idx), num_users, replace=False))
        requests = Requests(requests.user_idx[drawn], requests.end[drawn])
    wanted = relevant_items(data, "test", requests=requests, exclude_seen=exclude_seen)
    kept = np.diff(wanted.offsets) > 0
    requests = Requests(requests.user_idx[kept], requests.end[kept])
    wanted = wanted.take(np.flatnonzero(kept))
    ranker = ModelRanker(run.model.eval(), run.corpus)
    shown = [np.zeros((0, k), np.int64)]
    for batch, asked in RequestLoader(run.builder, requests):
        exclude = seen_items(data, asked) if exclude_seen else None
        shown.append(ranker.rank(batch, asked, k=k, exclude=exclude)[1].cpu().numpy())
    ranked = np.concatenate(shown)
    row = np.repeat(np.arange(len(wanted)), np.diff(wanted.offsets))
    item_idx = wanted.values.astype(np.int64)
    found = (ranked[row] == item_idx[:, None]).any(axis=1)
    return Results(data, requests, ranked, row, item_idx, found, _ages(data, requests, row=row, item_idx=item_idx))


def by_history(results: Results) -> list[Group]:
    """Group by the user's number of events before the test part."""
    bins = np.digitize(results.history_length, _HISTORY) - 1
    return _grouped(results, "events before the test", bins=bins[results.row], labels=_ranges(_HISTORY, "events"))


def by_popularity(results: Results) -> list[Group]:
    """Group by the number of training events of the relevant item."""
    bins = np.digitize(results.dataset.train_count[results.item_idx], _EVENTS) - 1
    return _grouped(results, "item's training events", bins=bins, labels=_ranges(_EVENTS, "events"))


def by_age(results: Results) -> list[Group]:
    """Group by the item's age at the user's event; no groups if the data has no times."""
    if results.age_days is None:
        return []
    bins = np.digitize(results.age_days, _DAYS) - 1
    return _grouped(results, "item's age", bins=bins, labels=["under a day", *_ranges(_DAYS, "days")[1:]])


def by_category(results: Results, descriptions: ItemDescriptions, *, name: str | None = None) -> list[Group]:
    """Group by the category of the relevant item, for the most frequent categories."""
    kind, values = descriptions.categories(name)
    wanted = values[results.item_idx]
    labels, counts = np.unique([value for value in wanted if value is not None], return_counts=True)
    chosen = labels[np.argsort(-counts, kind="stable")][:_CATEGORIES].tolist()
    number = {label: place for place, label in enumerate(chosen)}
    bins = np.array([number.get(value, -1) for value in wanted], np.int64)
    return _grouped(results, kind, bins=bins, labels=chosen)


def _grouped(results: Results, kind: str, *, bins: Ints, labels: Sequence[str]) -> list[Group]:
    groups = []
    for place, label in enumerate(labels):
        pairs = bins == place
        rows, users = np.unique(results.row[pairs], return_inverse=True)
        if len(rows) < _FEWEST_USERS:
            continue
        recall = np.bincount(users, results.found[pairs]) / np.bincount(users)
        ((mean, low, high, _),) = paired_bootstrap(recall[:, None])
        groups.append(Group(kind, label, mean, low, high, len(rows), int(pairs.sum())))
    return groups


def _ranges(edges: Sequence[int], unit: str) -> list[str]:
    closed = [
        f"{low} {unit}" if high == low + 1 else f"{low} to {high - 1} {unit}"
        for low, high in zip(edges, edges[1:], strict=False)
    ]
    return [*closed, f"{edges[-1]} {unit} or more"]


def _ages(dataset: PreparedDataset, requests: Requests, *, row: Ints, item_idx: Ints) -> npt.NDArray[np.float64] | None:
    if not dataset.meta.time_resolution.has_clock:
        return None
    first = np.full(dataset.num_items + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, dataset.item_idx, dataset.time)
    lengths = dataset.part_bounds("test")[1][requests.user_idx] - requests.end
    positions = ragged_positions(requests.end, lengths)
    width = dataset.num_items + 1
    # Events of a user are sorted by time, so the first of equal keys is the user's first event with the item.
    keys, places = np.unique(
        np.repeat(np.arange(len(lengths)), lengths) * width + dataset.item_idx[positions], return_index=True
    )
    taken = np.asarray(dataset.time[positions])[places[np.searchsorted(keys, row * width + item_idx)]]
    return np.asarray((taken - first[item_idx]) / _DAY)
