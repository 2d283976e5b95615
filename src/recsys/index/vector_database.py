"""Collections of a vector database: the protocol of an engine, and search in one collection.

A collection holds the items of one release and is named by its version. Shapes: Q queries, N items, D dim, K results.
Rows are positions 0..N-1 in the item embeddings of the release.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import pyarrow as pa

from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.core.types import Float32Array, Int64Array
from recsys.index.ann_index import Effort, Index

# Engines by the scheme of their address. `docs/extending.md` describes how to add one.
ENGINES = {"milvus": "recsys.index.milvus.Milvus"}
# File of a release that names engine and parameters, so that they are part of its version.
COLLECTION = "item_index.collection.json"
# A search is repeated this many times as far until it finds enough, or for a filter, until that adds no more than this
# share of the results: a filter may leave out what is near the query.
FURTHER, SETTLED = 4, 0.02
# Longest filter, as text, whose number of rows is kept.
LONGEST_KEPT = 4096


class DatabaseError(UserError):
    """The database does not answer, or refuses a call."""


class CollectionMissingError(DatabaseError):
    """The database has no collection of a version, or not any more."""


class Condition(NamedTuple):
    """Condition on a column of the items; a row must meet all of a filter.

    Attributes:
        operator: `in` or `not` with any number of values, or `gt`, `gte`, `lt`, `lte` with one.
        is_list: true if the column holds lists, of which one element must meet the condition.
        values: of the column's type; dates and times are integers in the unit of the column.
    """

    column: str
    operator: str
    is_list: bool
    values: tuple[str | int | float | bool, ...]


class Selection(NamedTuple):
    """Rows that a search may return, in ascending order: they meet all conditions and were not removed."""

    conditions: tuple[Condition, ...]
    removed: Int64Array


class VectorDatabase(Protocol):
    """A server that holds collections. All calls may come from several threads.

    Every call raises `DatabaseError` if the server does not answer, and `CollectionMissingError` if it does not have
    the collection.

    Attributes:
        address: `SCHEME://HOST:PORT`.
        most_results: number of results that one query can have at most.
    """

    address: str
    most_results: int

    def parameters(self) -> Mapping[str, Any]:
        """Return what determines how a collection is indexed, as values that JSON can hold; not the address."""
        ...

    def max_breadth(self, num_items: int) -> int:
        """Return the breadth at which a search reads all items of a collection."""
        ...

    def versions(self) -> list[str]:
        """Return the versions of the complete collections."""
        ...

    def fill(self, version: str, items: pa.Table, embeddings: Float32Array) -> None:
        """Make the collection of a version, durable and ready to be searched. It appears at once, or not at all.

        Args:
            version: version of the release.
            items: filter columns [N].
            embeddings: float32 [N, D], compared by inner product.
        """
        ...

    def columns(self, version: str) -> list[str]:
        """Return the columns of the items that filters can use."""
        ...

    def count(self, version: str, conditions: Sequence[Condition]) -> int:
        """Return the number of rows that meet the conditions."""
        ...

    def search(
        self, version: str, queries: Float32Array, k: int, *, breadth: int, conditions: Sequence[Condition]
    ) -> tuple[Float32Array, Int64Array]:
        """Return scores [Q, k] and rows [Q, k], best first; after the last result -inf and -1.

        A condition on the column "" is one on the row. Every row in the answer says that it is of this version.
        """
        ...

    def drop(self, version: str) -> None:
        """Remove the collection of a version, and what an interrupted `fill` left of it; nothing if there is none."""
        ...


class InDatabase:
    """An index that `recsys index` also fills into a vector database, for gateways that search there.

    The release holds the local index, which hosts, `recsys recommend` and gates search.

    Args:
        local: index of the release.
        database: engine that gets a collection named by the version.
    """

    def __init__(self, local: Index, database: VectorDatabase) -> None:
        self.local, self.database = local, database

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "local":
            raise AttributeError(name)
        return getattr(self.local, name)

    @property
    def effort(self) -> Effort:
        """Effort of the local index."""
        return self.local.effort

    @effort.setter
    def effort(self, effort: Effort) -> None:
        self.local.effort = effort

    def describe(self, folder: Path) -> list[str]:
        """Write engine and parameters, and return the name of the file."""
        scheme = self.database.address.partition("://")[0]
        content = {"engine": scheme, "parameters": dict(self.database.parameters())}
        (folder / COLLECTION).write_text(json.dumps(content, indent=2) + "\n")
        return [COLLECTION]


class CollectionIndex:
    """Search in the collection of one version, with the interface that `tune` measures.

    Excluded and removed rows are left out of longer results. If too few remain, the search is repeated further and
    longer, at last over all items, so that every query gets k results if so many may be returned.
    """

    is_exact = False
    refine_factors = (1,)

    def __init__(self, database: VectorDatabase, version: str, *, num_items: int, max_breadth: int) -> None:
        self.database, self.version, self.num_items, self.max_breadth = database, version, num_items, max_breadth
        self.effort = Effort(max_breadth)
        # A collection never changes.
        self._counted = lru_cache(maxsize=256)(lambda conditions: database.count(version, conditions))

    def least_breadth(self, k: int) -> int:  # noqa: ARG002
        """Return 1, the lowest useful breadth."""
        return 1

    def search(
        self, queries: Float32Array, k: int, *, allow: Selection | None = None, exclude: Ragged | None = None
    ) -> tuple[Float32Array, Int64Array]:
        """Return scores float32 [Q, k] and rows int64 [Q, k] as `Index.search` does."""
        queries = np.ascontiguousarray(queries, np.float32)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        conditions, removed = ((), np.zeros(0, np.int64)) if allow is None else allow
        total = self._count(conditions) if conditions else self.num_items
        excluded = np.zeros(len(queries), np.int64) if exclude is None else np.diff(exclude.offsets)
        # Queries are grouped by the number of their exclusions, so that one long history does not lengthen all.
        bucket = np.ceil(np.log2(excluded + 1)).astype(np.int64)
        for size in np.unique(bucket) if total else ():
            members = np.flatnonzero(bucket == size)
            left = None if exclude is None or not size else exclude.take(members)
            wanted = k + int(excluded[members].max())
            # About as many results as other items were removed.
            wanted += min(len(removed), math.ceil(2 * wanted * len(removed) / self.num_items) + 8)
            scores[members], rows[members] = self._refined(
                queries[members], k, wanted=wanted, total=total, selection=Selection(conditions, removed), exclude=left
            )
        return scores, rows

    def _count(self, conditions: tuple[Condition, ...]) -> int:
        # Clients choose the filters, and many long ones would fill the memory.
        is_kept = len(repr(conditions)) <= LONGEST_KEPT
        return self._counted(conditions) if is_kept else self.database.count(self.version, conditions)

    def _breadth(self, wanted: int, total: int) -> int:
        deeper, wider = max(1.0, wanted / self.effort.k), self.num_items / total
        return min(math.ceil(self.effort.breadth * deeper * wider**2), self.max_breadth)

    def _refined(
        self,
        queries: Float32Array,
        k: int,
        *,
        wanted: int,
        total: int,
        selection: Selection,
        exclude: Ragged | None,
    ) -> tuple[Float32Array, Int64Array]:
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        breadth, pending = self._breadth(wanted, total), np.arange(len(queries))
        most = min(total, self.database.most_results)
        limit = min(wanted, most)
        while True:
            left = None if exclude is None else exclude.take(pending)
            found = self._search(queries[pending], limit, breadth=breadth, conditions=selection.conditions)
            new, new_rows = _without(*found, k=k, removed=selection.removed, exclude=left)
            is_short = new_rows[:, -1] < 0
            is_open = is_short if limit < most or breadth < self.max_breadth else np.zeros(len(pending), bool)
            if selection.conditions and breadth < self.max_breadth:
                last = scores[pending, -1:]
                gained = (new > last).sum(axis=1) - (scores[pending] > last).sum(axis=1)
                is_open = is_open | (gained > SETTLED * k)
            scores[pending], rows[pending] = new, new_rows
            if not is_open.any():
                pending = pending[is_short]
                break
            pending = pending[is_open]
            breadth = min(FURTHER * breadth, self.max_breadth)
            limit = min(FURTHER * limit, most) if is_short.any() else limit
        for query in pending.tolist() if limit < total else ():
            # More of the best items are left out than one search can return, so the database leaves them out.
            gone = selection.removed if exclude is None else np.union1d(selection.removed, _list(exclude, query))
            row = Condition("", "not", False, tuple(gone.tolist()))
            conditions = (*selection.conditions, row)
            found = self._search(queries[[query]], k, breadth=breadth, conditions=conditions)
            scores[query], rows[query] = found[0][0], found[1][0]
        return scores, rows

    def _search(
        self, queries: Float32Array, limit: int, *, breadth: int, conditions: Sequence[Condition]
    ) -> tuple[Float32Array, Int64Array]:
        return self.database.search(self.version, queries, limit, breadth=breadth, conditions=conditions)


def _list(lists: Ragged, number: int) -> Int64Array:
    return lists.values[lists.offsets[number] : lists.offsets[number + 1]].astype(np.int64)


def _without(
    scores: Float32Array, rows: Int64Array, *, k: int, removed: Int64Array, exclude: Ragged | None
) -> tuple[Float32Array, Int64Array]:
    """Return the first k results of each query that are neither removed nor excluded."""
    keep = rows >= 0
    if len(removed):
        keep &= ~np.isin(rows, removed)
    for query in range(len(rows) if exclude is not None else 0):
        keep[query] &= ~np.isin(rows[query], _list(cast(Ragged, exclude), query))
    order = np.argsort(~keep, axis=1, kind="stable")[:, :k]
    kept = np.take_along_axis(keep, order, axis=1)
    out_scores = np.full((len(rows), k), -np.inf, np.float32)
    out_rows = np.full((len(rows), k), -1, np.int64)
    width = order.shape[1]
    out_scores[:, :width] = np.where(kept, np.take_along_axis(scores, order, axis=1), -np.inf)
    out_rows[:, :width] = np.where(kept, np.take_along_axis(rows, order, axis=1), -1)
    return out_scores, out_rows


def is_database(address: str) -> bool:
    """Return True for an address such as `milvus://HOST:PORT`."""
    return address.partition("://")[0] in ENGINES


def open_database(address: str) -> VectorDatabase:
    """Return the engine at an address.

    Raises:
        UserError: If the address has another scheme or form, or the engine's client is not installed.
    """
    module, _, name = ENGINES[address.partition("://")[0]].rpartition(".")
    database: VectorDatabase = getattr(importlib.import_module(module), name)(address)
    return database
