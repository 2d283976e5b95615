"""User-item matrices, and ranked lists from blocks of scores: the common part of all baselines.

Items with events come first in the order of item_idx, so column c of every matrix is item_idx c + 1.
Shapes: U users, R requests, H requests of a block, N items that a baseline has learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from recsys.core.columns import Ragged, ragged_positions
from recsys.core.errors import UserError, nearest
from recsys.core.types import Float32Array
from recsys.data.batches.batch import RaggedTensor
from recsys.data.dataset import PreparedDataset, Requests
from recsys.evaluation.ranking import Ranker
from recsys.evaluation.relevance import recent_items, seen_items
from recsys.evaluation.topk import BlockedTopK

Until = Literal["train", "val"]
# Maximum number of sparse matrix entries in memory at once; sorting takes some 40 bytes per entry.
NUM_ENTRIES = 4 << 20
# Maximum size of an array that replaces a sparse matrix.
_DENSE_BYTES = 256 << 20


class Interactions:
    """Events of the training part (`until="train"`), or of the training and validation parts (`until="val"`).

    Args:
        dataset: prepared data set.
        until: last part to learn from.
        fill: fill lists up with the most popular items; otherwise a list ends after the items that the baseline scores.

    Attributes:
        num_items: number of items with such events, N; the corpus is item_idx 1..N.
        end: position after each user's last such event, int64 [U].
    """

    def __init__(self, dataset: PreparedDataset, until: Until, *, fill: bool = True) -> None:
        if until not in get_args(Until):
            raise UserError(f"until={until}: no such part{nearest(until, get_args(Until))}")
        self.dataset, self.fill = dataset, fill
        self.num_items = dataset.num_trained if until == "train" else dataset.meta.num_seen
        self.end = dataset.train_end if until == "train" else dataset.val_end
        if not self.num_items:
            raise UserError(f"{dataset.path}: no events up to the end of part '{until}'; expected at least one")
        self._search = BlockedTopK(self.num_items)

    def positions(self) -> npt.NDArray[np.int64]:
        """Return the positions of the events in the data set's columns."""
        begin = self.dataset.offsets[:-1]
        return ragged_positions(begin, self.end - begin)

    def counts(self) -> npt.NDArray[np.int64]:
        """Return the number of events of each item, int64 [N]."""
        items = np.asarray(self.dataset.item_idx[self.positions()])
        return np.bincount(items, minlength=self.num_items + 1)[1 : self.num_items + 1]

    @cached_property
    def users(self) -> Any:
        """Binary user-item matrix, csr float32 [U, N]."""
        return self.histories(Requests(np.arange(self.dataset.num_users), self.end))

    @cached_property
    def pairs(self) -> Float32Array:
        """Number of users with events on both of two items, dense float32 [N, N].

        The diagonal counts the users of each item.
        """
        pairs = np.zeros((self.num_items, self.num_items), np.float32)
        items = self.users.T.tocsr()
        for rows in self.blocks(items):
            (items[rows] @ self.users).todense(out=pairs[rows])
        return pairs

    def blocks(self, items: Any) -> list[slice]:
        """Return slices of items whose products `items[rows] @ users` have at most about `NUM_ENTRIES` entries.

        Args:
            items: transpose of `users`, csr [N, U].
        """
        # The number of events of an item's users bounds the number of distinct items in the product from above.
        met = items @ np.diff(self.users.indptr)
        return slices_of(np.minimum(met, self.num_items).astype(np.int64), NUM_ENTRIES)

    def histories(self, requests: Requests, num_recent: int | None = None) -> Any:
        """Return the distinct known items before each request: binary csr float32 [R, N].

        Args:
            requests: users, and the ends of their histories.
            num_recent: number of most recent events to read; None for all.
        """
        if num_recent is None:
            seen = seen_items(self.dataset, requests)
        else:
            seen = recent_items(self.dataset, requests, num_recent)
        rows, columns = self._cells(seen)
        shape = (len(seen), self.num_items)
        matrix = csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
        matrix.sum_duplicates()
        matrix.data[:] = 1
        return matrix

    def fallback(self) -> Float32Array:
        """Return scores in [-1, 0) for items without a score of their own; the most popular item is nearest to 0.

        Without `fill` all scores are -inf, which means no result.
        """
        if not self.fill:
            return np.full(self.num_items, -np.inf, np.float32)
        scores = np.empty(self.num_items, np.float32)
        order = np.argsort(-self.counts(), kind="stable")
        scores[order] = -np.arange(1, self.num_items + 1) / self.num_items
        return scores

    def rank(
        self,
        requests: Requests,
        k: int,
        exclude: Ragged | None,
        score: Callable[[Any, Float32Array], None],
        num_recent: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Rank items for each request; see `recsys.evaluation.ranking.Ranker`.

        Args:
            requests: users, and the ends of their histories.
            k: number of results per request.
            exclude: item_idx to leave out of each request's results.
            score: `score(histories, out)` fills `out`, float32 [H, N], from histories, csr [H, N].
            num_recent: number of most recent events to read; None for all.
        """
        return self.rank_by(self.histories(requests, num_recent), k, exclude, score)

    def rank_by(
        self, rows: Any, k: int, exclude: Ragged | None, score: Callable[[Any, Float32Array], None]
    ) -> tuple[Tensor, Tensor]:
        """Rank items as `rank` does, from rows of another matrix than the histories.

        Args:
            rows: csr matrix with one row per request.
            k: number of results per request.
            exclude: item_idx to leave out of each request's results.
            score: `score(rows, out)` fills `out`, float32 [H, N], from H of the rows.
        """

        def write(begin: int, out: Tensor) -> None:
            score(rows[begin : begin + len(out)], out.numpy())

        columns = None if exclude is None else self._columns(exclude)
        scores, found = self._search(rows.shape[0], k, write=write, exclude=columns)
        return scores, found + 1

    def _cells(self, items: Ragged) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        rows = np.repeat(np.arange(len(items)), np.diff(items.offsets))
        known = (items.values > 0) & (items.values <= self.num_items)
        return rows[known], items.values[known].astype(np.int64) - 1

    def _columns(self, items: Ragged) -> RaggedTensor:
        rows, columns = self._cells(items)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(items)))])
        return RaggedTensor(torch.from_numpy(columns), torch.from_numpy(offsets))


class Generator(Ranker, Protocol):
    """Ranker that learns from events in one pass."""

    def fit(self, events: Interactions) -> None:
        """Learn from the events.

        Raises:
            UserError: If the generator cannot use such data.
        """
        ...


def slices_of(costs: npt.NDArray[np.int64], budget: int) -> list[slice]:
    """Return slices of consecutive rows whose costs add up to at most `budget`; a costlier row is a slice by itself."""
    return list(_slices_of(np.cumsum(costs), budget))


def _slices_of(total: npt.NDArray[np.int64], budget: int) -> Iterator[slice]:
    begin = 0
    while begin < len(total):
        spent = int(total[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, spent + budget, side="right")))
        yield slice(begin, end)
        begin = end


def dense_if_full(matrix: Any) -> Any:
    """Return a csr matrix as an array if it is small and full enough for array products to be faster."""
    is_full = 8 * matrix.nnz >= np.prod(matrix.shape)
    return matrix.toarray() if is_full and 4 * np.prod(matrix.shape) <= _DENSE_BYTES else matrix


def sum_rows(weights: Any, matrix: Any, *, fallback: Float32Array, out: Float32Array) -> None:
    """Write `weights @ matrix`, both non-negative, to `out`, and `fallback` where the product is zero.

    Args:
        weights: csr float32 [H, N].
        matrix: result of `dense_if_full` for float32 [N, N].
        fallback: float32 [N].
        out: float32 [H, N].
    """
    found = weights @ matrix
    if isinstance(found, np.ndarray):
        out[:] = np.where(found > 0, found, fallback)
    else:
        out[:] = fallback
        out[np.repeat(np.arange(len(out)), np.diff(found.indptr)), found.indices] = found.data


def best_of_rows(matrix: Any, k: int) -> Any:
    """Keep the k largest positive entries, all below 2, of each row of a csr matrix; among equals the lower columns."""
    num_rows, num_columns = matrix.shape
    rows = np.repeat(np.arange(num_rows), np.diff(matrix.indptr))
    positive = matrix.data > 0
    rows, columns, values = rows[positive], matrix.indices[positive], matrix.data[positive]
    # One sort of integers that combine row, descending value and column. The bits of positive floats sort like their
    # values, and 30 bits hold values below 2. With very many columns the last bits of a value are dropped.
    column_bits = int(num_columns).bit_length()
    value_bits = min(30, 63 - column_bits - int(num_rows).bit_length())
    descending = ((1 << 30) - 1 - values.view(np.int32).astype(np.int64)) >> (30 - value_bits)
    order = np.argsort((((rows << value_bits) | descending) << column_bits) | columns)
    first = np.searchsorted(rows, np.arange(num_rows))
    best = order[np.arange(len(rows)) - first[rows] < k]
    return csr_matrix((values[best], (rows[best], columns[best])), shape=matrix.shape)
