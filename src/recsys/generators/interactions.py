"""What the generators share: who did what as a sparse matrix, and ranked lists from blocks of scores.

Items with events come first in the order of item_idx, so column c of every matrix here is item_idx c + 1.
Shapes: U users, R requests, H requests of a block, N items that a generator knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from recsys.data.batch import RaggedTensor
from recsys.data.columns import Ragged, ragged_positions
from recsys.data.dataset import PreparedDataset, Requests
from recsys.errors import UserError, nearest
from recsys.evaluation.relevance import seen_items
from recsys.evaluation.topk import BlockedTopK, block_height

Until = Literal["train", "val"]
Floats = npt.NDArray[np.float32]


class Interactions:
    """Events of the training part (`until="train"`), or of training and validation (`until="val"`).

    Args:
        dataset: the prepared data.
        until: the last part that is learned from.

    Attributes:
        num_items: items with such events, N: the corpus is item_idx 1..N.
        end: position after each user's last such event; int64 [U].
    """

    def __init__(self, dataset: PreparedDataset, until: Until) -> None:
        if until not in get_args(Until):
            raise UserError(f"until={until}: no such part{nearest(until, get_args(Until))}")
        self.dataset = dataset
        self.num_items = dataset.num_trained if until == "train" else dataset.meta.num_seen
        self.end = dataset.train_end if until == "train" else dataset.val_end
        if not self.num_items:
            raise UserError(f"{dataset.path}: no events up to the end of part '{until}'; expected at least one")
        self._search = BlockedTopK(self.num_items)

    def positions(self) -> npt.NDArray[np.int64]:
        """Positions of the events."""
        begin = self.dataset.offsets[:-1]
        return ragged_positions(begin, self.end - begin)

    def counts(self) -> npt.NDArray[np.int64]:
        """Events of each item; int64 [N]."""
        items = np.asarray(self.dataset.item_idx[self.positions()])
        return np.bincount(items, minlength=self.num_items + 1)[1 : self.num_items + 1]

    def users(self) -> Any:
        """Who did what: binary csr float32 [U, N]."""
        return self.histories(Requests(np.arange(self.dataset.num_users), self.end))

    def histories(self, requests: Requests) -> Any:
        """The distinct known items before each request: binary csr float32 [R, N]."""
        seen = seen_items(self.dataset, requests)
        rows, columns = self._cells(seen)
        shape = (len(seen), self.num_items)
        matrix = csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
        matrix.sum_duplicates()
        matrix.data[:] = 1
        return matrix

    def fallback(self) -> Floats:
        """Scores in [-1, 0) for where nothing is known of a user or item: the most popular item is nearest to 0."""
        scores = np.empty(self.num_items, np.float32)
        order = np.argsort(-self.counts(), kind="stable")
        scores[order] = -np.arange(1, self.num_items + 1) / self.num_items
        return scores

    def rank(
        self, requests: Requests, k: int, exclude: Ragged | None, score: Callable[[Any, Floats], None]
    ) -> tuple[Tensor, Tensor]:
        """Ranked lists, as in `recsys.evaluation.ranking.Ranker`.

        Args:
            requests: what is asked.
            k: results a request.
            exclude: item_idx that each request must not get.
            score: `score(histories, out)` fills float32 out [H, N] for histories csr [H, N].
        """
        histories = self.histories(requests)

        def write(begin: int, out: Tensor) -> None:
            score(histories[begin : begin + len(out)], out.numpy())

        columns = None if exclude is None else self._columns(exclude)
        scores, found = self._search(histories.shape[0], k, write, columns)
        return scores, found + 1

    def _cells(self, items: Ragged) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Row and column of every entry that the generator knows."""
        rows = np.repeat(np.arange(len(items)), np.diff(items.offsets))
        known = (items.values > 0) & (items.values <= self.num_items)
        return rows[known], items.values[known].astype(np.int64) - 1

    def _columns(self, items: Ragged) -> RaggedTensor:
        rows, columns = self._cells(items)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(items)))])
        return RaggedTensor(torch.from_numpy(columns), torch.from_numpy(offsets))


def blocks(num_rows: int, width: int) -> list[slice]:
    """Slices of rows whose dense blocks of `width` columns stay small."""
    height = block_height(width)
    return [slice(begin, min(begin + height, num_rows)) for begin in range(0, num_rows, height)]
