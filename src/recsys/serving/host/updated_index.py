"""The index of a release together with the item updates of its host. Imports no torch.

New items are searched exactly, beside the index, and filters apply to them. Items that were taken down are left out.
Shapes: N items of an index, A new ones, D dim, B users, K results.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.core.types import Float32Array, Int64Array
from recsys.index import ExtendedIndex, search_users
from recsys.index.ann_index import Searchable
from recsys.release.files import read_table
from recsys.release.manifest import ITEMS, Manifest
from recsys.release.parts import is_part, release_of
from recsys.release.runtime.item_ids import Filter, IdMap, ItemFilter
from recsys.release.runtime.item_search import Hits, ItemSearch
from recsys.release.runtime.query_encoder import ItemId
from recsys.serving.host.additions import Additions, to_table
from recsys.serving.host.item_updates import ItemUpdates
from recsys.serving.observability.recall_monitor import RecallMonitor, SampledSearch

A = TypeVar("A")


class _View(NamedTuple):
    """Data of a search, computed from one state of the updates: of the index's rows, and of the new items."""

    number: int
    # Rows that were taken down, and the filter that they do not pass.
    removed: Int64Array
    filter: ItemFilter
    ids: list[ItemId]
    embeddings: Float32Array
    row_of: dict[ItemId, int]
    new_filter: ItemFilter


class UpdatedIndex(ItemSearch):
    """The index of one release with the item updates of its host. The monitor gets a share of the searches."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        known_items: IdMap,
        updates: ItemUpdates,
        monitor: RecallMonitor | None = None,
    ) -> None:
        super().__init__(folder, manifest, known_items=known_items, shard=updates.shard)
        self._updates, self._monitor = updates, monitor
        self._state: _View | None = None
        self._lock = threading.Lock()

    def search(
        self,
        embeddings: Float32Array,
        k: int,
        *,
        filter: Filter | None = None,
        exclude: Sequence[Sequence[ItemId]] | None = None,
    ) -> list[Hits]:
        """Search as `ItemSearch.search` does, with new items and without those that were taken down."""
        view = self._view()
        allow = view.filter(filter or {})
        if self._monitor is not None and len(embeddings) and self._monitor.wants():
            excluded = None if exclude is None else self.rows_of_items(exclude[:1])
            of_first = np.zeros(0, np.int32) if excluded is None else excluded.values
            query = embeddings[0] if embeddings.ndim == 2 else embeddings[0, 0]
            index, vectors = self.index, self.embeddings
            self._monitor.put(SampledSearch(self.version, index, vectors, query, k=k, allow=allow, exclude=of_first))
        return self._search(self.index, view, embeddings, k=k, allow=allow, filter=filter, exclude=exclude)

    def _search(
        self,
        index: Searchable[A],
        view: _View,
        embeddings: Float32Array,
        *,
        k: int,
        allow: A | None,
        filter: Filter | None,
        exclude: Sequence[Sequence[ItemId]] | None,
    ) -> list[Hits]:
        """Search the index and the new items; `allow` are the rows of the index that pass the filter."""
        excluded = None if exclude is None else self.rows_of_items(exclude)
        if not view.ids:
            return self.hits(*search_users(index, embeddings, k=k, allow=allow, exclude=excluded))
        allow_new = view.new_filter(filter or {})
        extended = ExtendedIndex(index, view.embeddings, allowed=None if allow_new is None else allow_new.rows)
        if exclude is not None and excluded is not None:
            num_items = index.num_items
            more = [[num_items + view.row_of[item] for item in row if item in view.row_of] for row in exclude]
            excluded = _append(excluded, more)
        scores, rows = search_users(extended, embeddings, k=k, allow=allow, exclude=excluded)
        return self.hits(scores, rows, added=view.ids)

    def takes_long(self, num_embeddings: int, *, is_filtered: bool) -> bool:
        """Return True for long searches, and for the first one after an update."""
        state = self._state
        return (
            super().takes_long(num_embeddings, is_filtered=is_filtered)
            or state is None
            or state.number != self._updates.number
            or self._updates.has_new
        )

    def added_columns(self, item_id: ItemId) -> Mapping[str, Any]:
        """Return the columns of a new item."""
        return self._updates.columns_of(self.version, item_id)

    def close(self) -> None:
        """Stop measuring a version that was unloaded."""
        if self._monitor is not None:
            self._monitor.forget(self.version)
        super().close()

    def check_additions(self, additions: Additions) -> list[ItemId]:
        """Return the ids of new items; raise `UserError` if they do not fit the release or are in its index already."""
        if additions.version != self.version:
            raise UserError(f"version: found embeddings of {additions.version}, expected {self.version}")
        shape = (len(additions.items), self.manifest.dim)
        if additions.embeddings.shape != shape:
            raise UserError(f"embeddings: found shape {list(additions.embeddings.shape)}, expected {list(shape)}")
        if not np.isfinite(additions.embeddings).all():
            raise UserError("embeddings: found nan or inf, expected finite numbers")
        ids: list[ItemId] = to_table(additions.items, self.items.schema)["item_id"].to_pylist()
        is_indexed = np.diff(self.rows_of_items([[item] for item in ids]).offsets) > 0
        if is_part(self.folder):
            whole = release_of(self.folder)
            indexed = read_table(whole, ITEMS, Manifest.load(whole), columns=["item_id"])["item_id"]
            is_indexed = pc.is_in(pa.array(ids, indexed.type), value_set=indexed).to_numpy(zero_copy_only=False)
        seen: set[ItemId] = set()
        for number, item in enumerate(ids):
            place = f"items[{number}].item_id"
            if item is None:
                raise UserError(f"{place}: missing")
            if item in seen:
                raise UserError(f"{place}: {item!r} is there twice")
            if is_indexed[number]:
                raise UserError(f"{place}: {item!r} is in the index of {self.version} already")
            seen.add(item)
        return ids

    def _view(self) -> _View:
        self._updates.refresh()
        view = self._state
        if view is None or view.number != self._updates.number:
            with self._lock:
                view = self._state
                if view is None or view.number != self._updates.number:
                    view = self._state = self._make_view()
        return view

    def _filter_without(self, removed: Int64Array) -> ItemFilter:
        return self.item_filter.without(removed)

    def _make_view(self) -> _View:
        number, removed, new = self._updates.of(self.version)
        rows = self.rows_of_items([removed]).values.astype(np.int64)
        table = to_table([one.item for one in new], self.items.schema)
        ids: list[ItemId] = table["item_id"].to_pylist()
        embeddings = np.array([one.embedding for one in new], np.float32).reshape(len(new), self.manifest.dim)
        return _View(
            number=number,
            removed=np.sort(rows),
            filter=self._filter_without(rows),
            ids=ids,
            embeddings=embeddings,
            row_of={item: row for row, item in enumerate(ids)},
            new_filter=ItemFilter(table),
        )


def _append(rows: Ragged, more: Sequence[Sequence[int]]) -> Ragged:
    if not any(more):
        return rows
    parts = [
        np.concatenate([rows.values[begin:end], np.array(behind, np.int32)])
        for begin, end, behind in zip(rows.offsets[:-1], rows.offsets[1:], more, strict=True)
    ]
    return Ragged(np.concatenate(parts), np.concatenate([[0], np.cumsum([len(part) for part in parts])]))
