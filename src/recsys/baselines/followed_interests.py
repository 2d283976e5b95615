"""Items of the interests that a user follows: the usual heuristic of topic feeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from scipy.sparse import csr_matrix, diags
from torch import Tensor

from recsys.baselines.interactions import Interactions
from recsys.core.columns import Column, Ragged
from recsys.core.errors import UserError, nearest
from recsys.core.schema import FIRST_CODE, Feature
from recsys.core.types import Float32Array
from recsys.data.batches.batch import Batch
from recsys.data.dataset import PreparedDataset, Requests


class FollowedInterests:
    """Scores an item by its probability if the user first picks an interest, and then an item of it by popularity.

    `P(i | u) = sum over interests c of P(c | u) P(i | c)`: the aspect model of Hofmann and Puzicha ("Latent class
    models for collaborative filtering", 1999) with known classes. P(c | u) is the share of c among the user's events
    (an event on an item of several interests counts in equal parts) and the interests of the profile, each of which
    counts as one event. P(i | c) is the share of item i among the events of c. Items outside the user's interests
    follow, most popular first; users without interests get the most popular items.

    Args:
        interest: item column with the interests, a category or a bag of categories; null for the first such column.
        profile: user column with interests of the same names; null for the first column that shares a name, if any.
        num_interests: number of a user's strongest interests that count.
    """

    def __init__(self, interest: str | None = None, profile: str | None = None, *, num_interests: int = 10) -> None:
        if num_interests < 1:
            raise UserError(f"generator.num_interests={num_interests}: expected at least 1")
        self.interest, self.profile, self.num_interests = interest, profile, num_interests

    def fit(self, events: Interactions) -> None:
        """Count the events of each interest.

        Raises:
            UserError: If the data has no such column, or no column with categories.
        """
        dataset = events.dataset
        feature = _column(dataset, "items", name=self.interest)
        if feature is None:
            raise UserError("generator=followed_interests: no column of items is a category or a bag of categories")
        width = feature.size
        of_items = _shares(dataset.columns[feature.key], np.arange(1, events.num_items + 1), width=width)
        weights = diags(events.counts().astype(np.float32)) @ of_items
        totals = np.asarray(weights.sum(axis=0)).ravel()
        self._items_of = (weights @ diags(1 / np.maximum(totals, 1))).T.tocsr().astype(np.float32)
        self._of_items, self._events, self._fallback = of_items, events, events.fallback()
        self._profiles = self._read_profiles(dataset, feature)

    def rank(self, batch: Batch, requests: Requests, *, k: int, exclude: Ragged | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Rank items for each request; see `recsys.evaluation.ranking.Ranker`."""
        known = requests.user_idx >= 0
        followed = self._profiles[np.where(known, requests.user_idx, 0)]
        followed = diags(known.astype(np.float32)) @ followed
        interests = self._strongest(self._events.histories(requests) @ self._of_items + followed)
        return self._events.rank_by(interests, k, exclude, self._score)

    def _score(self, interests: Any, out: Float32Array) -> None:
        found = np.asarray((interests @ self._items_of).todense())
        out[:] = np.where(found > 0, found, self._fallback)

    def _strongest(self, interests: Any) -> Any:
        """Return the strongest interests of each row as shares, csr float32 [R, C]; among equals the lower codes."""
        interests = interests.tocsr()
        rows = np.repeat(np.arange(interests.shape[0]), np.diff(interests.indptr))
        order = np.lexsort((interests.indices, -interests.data, rows))
        kept = order[np.arange(len(rows)) - interests.indptr[rows] < self.num_interests]
        chosen = csr_matrix((interests.data[kept], (rows[kept], interests.indices[kept])), shape=interests.shape)
        totals = np.asarray(chosen.sum(axis=1)).ravel()
        return (diags(1 / np.where(totals > 0, totals, 1)) @ chosen).tocsr().astype(np.float32)

    def _read_profiles(self, dataset: PreparedDataset, feature: Feature) -> Any:
        """Return the interests of user profiles in the codes of the item column, csr float32 [U, C]."""
        empty = csr_matrix((dataset.num_users, feature.size), dtype=np.float32)
        names: Any = dataset.vocabulary(feature)
        found = _column(dataset, "users", name=self.profile)
        others = dataset.schema.owned_by("users") if self.profile is None else (found,)
        for other in others:
            if other is None or not other.has_vocabulary:
                continue
            values: Any = dataset.vocabulary(other)
            if values.type != names.type:
                continue
            place = np.array(pc.index_in(values, value_set=names).fill_null(-1))
            if not (place >= 0).any():
                continue
            codes = np.concatenate([np.full(FIRST_CODE, -1), np.where(place >= 0, place + FIRST_CODE, -1)])
            rows, found_codes = _cells(dataset.columns[other.key], np.arange(dataset.num_users))
            mapped = codes[found_codes]
            kept = mapped >= 0
            ones = np.ones(int(kept.sum()), np.float32)
            return csr_matrix((ones, (rows[kept], mapped[kept])), shape=empty.shape)
        if self.profile is not None:
            raise UserError(f"generator.profile={self.profile}: shares no value with the items' column {feature.name}")
        return empty


def _column(dataset: PreparedDataset, owner: Any, *, name: str | None) -> Feature | None:
    """Return the named column with categories, or the first one if no name is given."""
    able = {feature.name: feature for feature in dataset.schema.owned_by(owner) if feature.has_vocabulary}
    if name is None:
        return next(iter(able.values()), None)
    if name not in able:
        setting = "interest" if owner == "items" else "profile"
        raise UserError(
            f"generator.{setting}={name}: no column of {owner} with categories is called so{nearest(name, able)}"
        )
    return able[name]


def _cells(column: Column, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the row (from 0) and the code of every value that is neither missing nor unknown."""
    taken = column.take(rows)
    if isinstance(taken, Ragged):
        owner, codes = np.repeat(np.arange(len(rows)), np.diff(taken.offsets)), taken.values
    else:
        owner, codes = np.arange(len(rows)), np.asarray(taken.values)
    known = codes >= FIRST_CODE
    return owner[known], codes[known].astype(np.int64)


def _shares(column: Column, rows: npt.NDArray[np.int64], *, width: int) -> Any:
    """Return the interests of each item as shares that add up to 1, csr float32 [N, C]."""
    owner, codes = _cells(column, rows)
    parts = (1 / np.bincount(owner, minlength=len(rows))[owner]).astype(np.float32)
    return csr_matrix((parts, (owner, codes)), shape=(len(rows), width))
