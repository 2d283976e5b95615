"""The item half of a release: user embeddings in, ranked item ids out. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from recsys.core.columns import Ragged, load_array
from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.index import Index, load_index, search_users
from recsys.release.manifest import EMBEDDINGS, ITEMS, SELF_CHECK, Manifest
from recsys.release.runtime.item_ids import Filter, IdMap, ItemFilter
from recsys.release.runtime.query_encoder import ItemId, load_known_items
from recsys.release.runtime.self_check import TOLERANCE, stored_check
from recsys.release.runtime.shard import Shard


class Hits(NamedTuple):
    """Ranked items of one user.

    Attributes:
        item_ids: best first; where a user has several embeddings, these take turns.
        scores: float32, of the same length; each from the embedding that brought the item.
    """

    item_ids: list[ItemId]
    scores: Float32Array


class ItemSearch:
    """The index of one release, with ids and filters.

    Args:
        folder: of the release.
        manifest: what `verify_release` gave for it.
        known_items: ids of the release's vocabulary of items, where they are in memory already.
        shard: the rows that are searched; None: all.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, known_items: IdMap | None = None, shard: Shard | None = None
    ) -> None:
        self.folder, self.manifest = folder, manifest
        self.embeddings: Float32Array = load_array(folder / EMBEDDINGS).view(np.float32)
        self.index: Index = load_index(folder, self.embeddings, verify=False)
        self.items = pq.read_table(folder / ITEMS)
        self.item_filter = ItemFilter(self.items, None if shard is None else shard.rows(len(self.items)))
        self.known_items = load_known_items(folder) if known_items is None else known_items
        self.row_of_item = np.full(len(self.known_items) + 1, -1)
        self.row_of_item[np.asarray(self.items["item_idx"])] = np.arange(len(self.items))
        self._known_rows = np.asarray(self.items["item_idx"]) - 1

    @property
    def version(self) -> str:
        """Of the release that the index belongs to."""
        return self.manifest.version

    def search(
        self,
        embeddings: Float32Array,
        k: int,
        filter: Filter | None = None,
        exclude: Sequence[Sequence[ItemId]] | None = None,
    ) -> list[Hits]:
        """The k best items for each user; fewer where the filter and exclusions leave fewer.

        Args:
            embeddings: float32 [B, D], or [B, M, D] where a user has up to M embeddings (absent ones are zeros).
            k: items for each.
            filter: column -> value or values, over the columns of the release's items.
            exclude: B lists of items that may not be given; ids that the index does not hold are fine.

        Raises:
            UserError: a column, value or shape that the release does not know what to do with.
        """
        allow = self.item_filter(filter or {})
        excluded = None if exclude is None else self.rows_of_items(exclude)
        return self.hits(*search_users(self.index, embeddings, k=k, allow=allow, exclude=excluded))

    def hits(self, scores: Float32Array, rows: npt.NDArray[np.int64], more: Sequence[ItemId] = ()) -> list[Hits]:
        """Ids instead of rows.

        Args:
            scores: float32 [B, k], as `search_users` gives them.
            rows: int64 [B, k], likewise.
            more: ids of the rows behind those of the index, N and on.
        """
        found = rows >= 0
        flat, num_items = rows[found], len(self._known_rows)
        if more:
            inside = flat < num_items
            ids = self.known_items.outside(self._known_rows[np.where(inside, flat, 0)])
            for place in np.flatnonzero(~inside).tolist():
                ids[place] = more[flat[place] - num_items]
        else:
            ids = self.known_items.outside(self._known_rows[flat])
        bounds = np.concatenate([[0], found.sum(axis=1).cumsum()]).tolist()
        # What is missing is behind what is there.
        return [Hits(ids[lo:hi], scores[b, : hi - lo]) for b, (lo, hi) in enumerate(pairwise(bounds))]

    def rows_of_items(self, ids: Sequence[Sequence[ItemId]]) -> Ragged:
        """Rows of the index for the ids that it holds, for each query."""
        flat = [value for row in ids for value in row]
        lengths = np.array([len(row) for row in ids], np.int64)
        found = self.known_items.rows(flat) + 1
        return self.index_rows(Ragged(found.astype(np.int32), np.concatenate([[0], np.cumsum(lengths)])))

    def index_rows(self, items: Ragged) -> Ragged:
        """Rows of the index for rows of item_idx; those that it does not hold are left out."""
        owner = np.repeat(np.arange(len(items)), np.diff(items.offsets))
        known = items.values < len(self.row_of_item)
        rows = np.where(known, self.row_of_item[np.where(known, items.values, 0)], -1)
        counts = np.bincount(owner[rows >= 0], minlength=len(items))
        return Ragged(rows[rows >= 0].astype(np.int32), np.concatenate([[0], np.cumsum(counts)]))

    def check(self) -> None:
        """The index must find what it found when the release was made.

        Raises:
            UserError: it does not.
        """
        check = stored_check(self.folder)
        scores, _ = search_users(self.index, check["embeddings"], k=1)
        # An approximate search may go another way on another processor, but not for most questions.
        if np.isclose(scores[:, 0], check["best_scores"], atol=TOLERANCE, rtol=TOLERANCE).mean() < 0.75:
            raise UserError(
                f"{self.folder}: the index does not find the items of {SELF_CHECK}: tower and index are no pair"
            )

    def close(self) -> None:
        """Nothing to give back: what is mapped goes with the object."""
