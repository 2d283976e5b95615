"""The item half of a release: returns ranked item ids for user embeddings. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys.core.columns import Ragged
from recsys.core.errors import UserError, nearest
from recsys.core.types import Float32Array
from recsys.index import Index, load_index, search_users
from recsys.index.ann_index import check_embeddings
from recsys.index.sharded import DIVISIBLE, ShardIndex
from recsys.release.bounds import damaged
from recsys.release.files import private_copy, read_embeddings, read_shard, read_table
from recsys.release.manifest import ITEM_VOCABULARY, ITEMS, SELF_CHECK, Manifest
from recsys.release.parts import PARTS, is_part
from recsys.release.runtime.item_ids import Filter, IdMap, ItemFilter
from recsys.release.runtime.query_encoder import ItemId, load_known_items
from recsys.release.runtime.self_check import TOLERANCE, stored_check
from recsys.release.runtime.shard import CorpusShard

# Number of inner products above which a search takes milliseconds.
MANY_PRODUCTS = 10_000_000
# Number of results of each query of the self-check.
_CHECKED = 10


class Hits(NamedTuple):
    """Ranked items of one user.

    Attributes:
        item_ids: ids, best first; the embeddings of a user who has several take turns.
        scores: float32, of the same length; each is the score of the embedding that found the item.
    """

    item_ids: list[ItemId]
    scores: Float32Array


class ItemSearch:
    """The index of one release, with ids and filters.

    Args:
        known_items: ids of the item vocabulary if they are in memory already; None to read them.
        shard: part of the corpus that is searched; None for all of it.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, *, known_items: IdMap | None = None, shard: CorpusShard | None = None
    ) -> None:
        self.folder, self.manifest = folder, manifest
        self.known_items = load_known_items(folder, manifest) if known_items is None else known_items
        with damaged(folder):
            # A part has no other rows than those of its shard.
            self._load(None if is_part(folder) else shard)

    def _load(self, shard: CorpusShard | None) -> None:
        folder, manifest = self.folder, self.manifest
        self.index, self.embeddings = self._load_index(shard)
        self.items = read_table(folder, ITEMS, manifest)
        self.item_filter = ItemFilter(self.items, None if shard is None else shard.rows(len(self.items)))
        self._number_rows(self.items)

    def _load_index(self, shard: CorpusShard | None) -> tuple[Index, Float32Array]:
        """Return the index and its embeddings; of a shard only its own rows, if the index can be divided."""
        folder, manifest = self.folder, self.manifest
        names = [name for name in manifest.files if name.startswith("item_index.") and not name.startswith(PARTS)]
        # Copies: mapped files would change under the same version, and end the process when they are truncated.
        with private_copy(folder, names, manifest) as own:
            if shard is not None and manifest.index.get("class") in DIVISIBLE:
                embeddings = read_shard(folder, manifest, number=shard.number, count=shard.count)
                check_embeddings(embeddings)
                # Only the shape of the whole is read.
                whole = np.broadcast_to(np.float32(0), (manifest.num_items, manifest.dim))
                divided = ShardIndex.of(
                    load_index(own, whole, verify=False), embeddings, number=shard.number, count=shard.count
                )
                # A host only searches it.
                return cast(Index, divided), embeddings
            embeddings = read_embeddings(folder, manifest)
            check_embeddings(embeddings)
            return load_index(own, embeddings, verify=False), embeddings

    def _number_rows(self, items: pa.Table) -> None:
        """Keep the row of each item, and the item of each row."""
        item_idx = self._item_idx(items)
        self.row_of_item = np.full(len(self.known_items) + 1, -1)
        self.row_of_item[item_idx] = np.arange(len(items))
        self._known_rows = item_idx - 1

    def _item_idx(self, items: pa.Table) -> npt.NDArray[np.int64]:
        """Return the item_idx of each row; refuse a table in which rows and items are not one to one."""
        place = self.folder / ITEMS
        with damaged(place):
            if not pa.types.is_integer(items.schema.field("item_idx").type):
                raise UserError(f"{place}: item_idx: found {items['item_idx'].type}, expected integers")
            item_idx = np.asarray(items["item_idx"].cast(pa.int64()))
        if items["item_idx"].null_count or not ((item_idx > 0) & (item_idx <= len(self.known_items))).all():
            raise UserError(f"{place}: item_idx: found a value outside 1 to {len(self.known_items)}")
        if len(np.unique(item_idx)) != len(item_idx):
            raise UserError(f"{place}: item_idx: found an item more than once")
        if items["item_id"].to_pylist() != self.known_items.outside(item_idx - 1):
            raise UserError(f"{place}: item_id: found other ids than {ITEM_VOCABULARY} has for these item_idx")
        return item_idx

    @property
    def version(self) -> str:
        """Version of the release."""
        return self.manifest.version

    def search(
        self,
        embeddings: Float32Array,
        k: int,
        *,
        filter: Filter | None = None,
        exclude: Sequence[Sequence[ItemId]] | None = None,
    ) -> list[Hits]:
        """Return the k best items for each user; fewer if filter and exclusions leave fewer.

        Users have one embedding [B, D], or up to M [B, M, D], absent ones zeros. `filter` maps columns of the items to
        values. `exclude` has B lists of items; ids that the index does not hold are ignored.
        """
        allow = self.item_filter(filter or {})
        excluded = None if exclude is None else self.rows_of_items(exclude)
        return self.hits(*search_users(self.index, embeddings, k=k, allow=allow, exclude=excluded))

    def hits(self, scores: Float32Array, rows: npt.NDArray[np.int64], *, added: Sequence[ItemId] = ()) -> list[Hits]:
        """Return ids for scores and rows [B, k] of `search_users`; `added` are the ids of rows N and on."""
        found = rows >= 0
        flat, num_items = rows[found], len(self._known_rows)
        if added:
            inside = flat < num_items
            ids = self.known_items.outside(self._known_rows[np.where(inside, flat, 0)])
            for place in np.flatnonzero(~inside).tolist():
                ids[place] = added[flat[place] - num_items]
        else:
            ids = self.known_items.outside(self._known_rows[flat])
        bounds = np.concatenate([[0], found.sum(axis=1).cumsum()]).tolist()
        # Absent results come after all others.
        return [Hits(ids[lo:hi], scores[b, : hi - lo]) for b, (lo, hi) in enumerate(pairwise(bounds))]

    def rows_of_items(self, ids: Sequence[Sequence[ItemId]]) -> Ragged:
        """Return, for each list of ids, the rows of those that the index holds."""
        flat = [value for row in ids for value in row]
        lengths = np.array([len(row) for row in ids], np.int64)
        found = self.known_items.rows(flat) + 1
        return self.index_rows(Ragged(found.astype(np.int32), np.concatenate([[0], np.cumsum(lengths)])))

    def groups(self, names: Sequence[str], item_ids: Sequence[ItemId]) -> list[list[list[Any]]]:
        """Return, for each item, its values in each of some columns; raise `UserError` for an unknown column."""
        for name in names:
            if name not in self.item_filter.columns:
                hint = nearest(name, self.item_filter.columns)
                raise UserError(f"quotas.{name}: the release's items have no such column{hint}")
        rows = self.row_of_item[self.known_items.rows(item_ids) + 1]
        columns = [_lists(self._column(name).take(pa.array(np.maximum(rows, 0)))) for name in names]
        for place in np.flatnonzero(rows < 0).tolist():
            given = self.added_columns(item_ids[place])
            for name, column in zip(names, columns, strict=True):
                column[place] = _as_list(given.get(name))
        return list(map(list, zip(*columns, strict=True)))

    def _column(self, name: str) -> pa.ChunkedArray:
        return self.items.column(name)

    def added_columns(self, item_id: ItemId) -> Mapping[str, Any]:  # noqa: ARG002
        """Return the columns of an item that the index does not hold; none, because this index takes no items."""
        return {}

    def index_rows(self, items: Ragged) -> Ragged:
        """Return, for each list of item_idx, the rows of the index; items that it does not hold are left out."""
        owner = np.repeat(np.arange(len(items)), np.diff(items.offsets))
        known = items.values < len(self.row_of_item)
        rows = np.where(known, self.row_of_item[np.where(known, items.values, 0)], -1)
        counts = np.bincount(owner[rows >= 0], minlength=len(items))
        return Ragged(rows[rows >= 0].astype(np.int32), np.concatenate([[0], np.cumsum(counts)]))

    def takes_long(self, num_embeddings: int, *, is_filtered: bool) -> bool:
        """Return True if a search keeps the thread busy for milliseconds: a filter, or many exact inner products."""
        return is_filtered or (self.index.is_exact and len(self.items) * num_embeddings > MANY_PRODUCTS)

    def check(self) -> None:
        """Raise `UserError` unless the index returns the same results as when the release was made."""
        check = stored_check(self.folder, self.manifest)
        with damaged(self.folder / SELF_CHECK):
            k = min(_CHECKED, len(self.items))
            if not k:
                return
            scores, rows = search_users(self.index, check["embeddings"], k=k)
            best = np.isclose(scores[:, 0], check["best_scores"], atol=TOLERANCE, rtol=TOLERANCE)
            if isinstance(self.index, ShardIndex):
                # The best item may be in another shard.
                best |= scores[:, 0] <= check["best_scores"] + TOLERANCE
            elif "best_items" in check:
                # Items of equal scores are interchangeable.
                best &= self._scores_of(check["embeddings"], check["best_items"]) >= scores[:, 0] - TOLERANCE
            # An approximate search may take another path on another processor, but not for most queries.
            if best.mean() < 0.75:
                raise UserError(
                    f"{self.folder}: the index does not return the items of {SELF_CHECK}, so it belongs to another "
                    "tower"
                )
            found = rows >= 0
            ordered = np.sort(np.where(found, rows, -np.arange(1, k + 1)), axis=1)
            if (rows >= len(self.items)).any() or (np.diff(ordered, axis=1) == 0).any():
                raise UserError(f"{self.folder}: the index returns rows that the release does not have, or one twice")

    def _scores_of(self, users: Float32Array, item_idx: npt.NDArray[np.int64]) -> Float32Array:
        """Return the best score of each user [B] for one item; several embeddings of a user take their maximum."""
        items = self.embeddings[self.row_of_item[item_idx]]
        scores: Float32Array = np.einsum("bmd,bd->bm", users.reshape(len(items), -1, items.shape[1]), items).max(axis=1)
        return scores

    def close(self) -> None:
        """Do nothing: mapped files are released with the object."""


def _lists(column: pa.ChunkedArray) -> list[list[Any]]:
    """Return the values of each row; rows of equal values share a list, because many rows are read."""
    if pa.types.is_nested(column.type) or pa.types.is_null(column.type):
        return list(map(_as_list, column.to_pylist()))
    encoded = column.combine_chunks().dictionary_encode()
    lists = [*map(_as_list, encoded.dictionary.to_pylist()), []]
    return [lists[code] for code in encoded.indices.fill_null(len(lists) - 1).to_pylist()]


def _as_list(value: Any) -> list[Any]:
    found = value if isinstance(value, list) else [value]
    return [one if isinstance(one, str | int | float) else str(one) for one in found if one is not None]
