"""The items of a release in a collection of a vector database, together with the item updates. Imports no torch.

In memory are the ids and rows of the items, but neither their embeddings nor their columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys.core.errors import UserError, nearest
from recsys.core.types import Float32Array, Int64Array
from recsys.index import Effort, search_users
from recsys.index.vector_database import (
    CollectionIndex,
    CollectionMissingError,
    Condition,
    DatabaseError,
    Selection,
    VectorDatabase,
)
from recsys.release.files import read_table
from recsys.release.manifest import ITEMS, SELF_CHECK, Manifest
from recsys.release.runtime.item_ids import Filter, IdMap, ItemFilter
from recsys.release.runtime.item_search import Hits
from recsys.release.runtime.query_encoder import ItemId
from recsys.release.runtime.self_check import TOLERANCE, stored_check
from recsys.release.runtime.shard import CorpusShard
from recsys.serving.host.item_updates import ItemUpdates
from recsys.serving.host.updated_index import UpdatedIndex
from recsys.serving.http.problems import ServerFault, VersionNotHeld


class CollectionSearch(UpdatedIndex):
    """Search in the collection of a release, with new items and without those that were taken down."""

    def __init__(
        self, folder: Path, manifest: Manifest, *, known_items: IdMap, updates: ItemUpdates, database: VectorDatabase
    ) -> None:
        self._database = database
        super().__init__(folder, manifest, known_items=known_items, updates=updates)

    def _load(self, shard: CorpusShard | None) -> None:  # noqa: ARG002
        manifest, place = self.manifest, f"{self.folder}: index.collection"
        record = manifest.index.get("collection")
        if not isinstance(record, Mapping):
            raise UserError(f"{place}: missing; this release was not made by recsys index index=milvus")
        try:
            effort = Effort(**{name: int(value) for name, value in record["effort"].items()})
            most = int(record["max_breadth"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{place}: damaged ({error})") from error
        if not (1 <= effort.breadth <= most <= 1 << 20 and effort.k >= 1):
            raise UserError(f"{place}: found {effort}, expected a breadth of 1 to {most}")
        self.collection = CollectionIndex(
            self._database, manifest.version, num_items=manifest.num_items, max_breadth=most
        )
        self.collection.effort = effort
        self._columns = frozenset(self._database.columns(manifest.version))
        items = read_table(self.folder, ITEMS, manifest)
        self._number_rows(items)
        # Without rows it still says which columns there are, and what values they hold.
        self.items = items.slice(0, 0).combine_chunks()
        self.item_filter = ItemFilter(self.items)
        self._column_of = lru_cache(maxsize=8)(
            lambda name: read_table(self.folder, ITEMS, manifest, columns=[name]).column(name)
        )

    def search(
        self,
        embeddings: Float32Array,
        k: int,
        *,
        filter: Filter | None = None,
        exclude: Sequence[Sequence[ItemId]] | None = None,
    ) -> list[Hits]:
        """Search as `UpdatedIndex.search` does.

        Raises:
            VersionNotHeld: If the collection was dropped.
            ServerFault: If the database does not answer.
        """
        view = self._view()
        selection = Selection(self._conditions(filter or {}), view.removed)
        try:
            return self._search(self.collection, view, embeddings, k=k, allow=selection, filter=filter, exclude=exclude)
        except CollectionMissingError as error:
            raise VersionNotHeld(self.version, serving=None, loaded=[]) from error
        except DatabaseError as error:
            raise ServerFault(str(error)) from error

    def _conditions(self, filter: Filter) -> tuple[Condition, ...]:
        conditions = self.item_filter.conditions(filter)
        for condition in conditions:
            if condition.column not in self._columns:
                hint = nearest(condition.column, self._columns)
                raise UserError(f"filter.{condition.column}: the collection does not hold this column{hint}")
        return conditions

    def _filter_without(self, removed: Int64Array) -> ItemFilter:  # noqa: ARG002
        return self.item_filter

    def _column(self, name: str) -> pa.ChunkedArray:
        return self._column_of(name)

    def takes_long(self, num_embeddings: int, *, is_filtered: bool) -> bool:  # noqa: ARG002
        """Return True: the thread waits for the database."""
        return True

    def check(self) -> None:
        """Raise `UserError` unless the collection returns the same results as the index of the release did."""
        check = stored_check(self.folder, self.manifest)
        if not self.manifest.num_items:
            return
        scores, _ = search_users(self.collection, check["embeddings"], k=1)
        best = np.isclose(scores[:, 0], check["best_scores"], atol=TOLERANCE, rtol=TOLERANCE)
        if best.mean() < 0.75:
            raise UserError(f"{self._database.address}: the collection does not return the items of {SELF_CHECK}")
