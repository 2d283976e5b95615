"""What changes in an index that runs: items that came after it was built, and items that must not be shown any more.

New items belong to one version, whose item tower embedded them. They are searched exactly beside the index, and found
by filters. A takedown holds for every version, whichever a host loads and when. Both are in a journal of the host
before they are acknowledged, and every process of the host sees them with its next search. Imports no torch.

Shapes: N items of an index, A new ones, D dim, B users, K results.
"""

from __future__ import annotations

import base64
import threading
import zlib
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recsys.core.columns import Ragged
from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.index import ExtendedIndex, search_users
from recsys.release.manifest import Manifest
from recsys.release.runtime.item_ids import Filter, IdMap, ItemFilter
from recsys.release.runtime.item_search import Hits, ItemSearch
from recsys.release.runtime.query_encoder import ItemId
from recsys.release.runtime.shard import Shard
from recsys.serving.host.additions import Additions, to_table
from recsys.serving.host.journal import Journal
from recsys.serving.observability.recall_monitor import RecallMonitor, Sample


class _New(NamedTuple):
    """A new item: its columns, and its embedding float32 [D]."""

    item: Mapping[str, Any]
    embedding: Float32Array


class Changes:
    """Everything that one host was told. Thread-safe.

    Args:
        path: of the journal.
        shard: of the corpus, that the host searches; its new items are those whose id falls to it.
        monitor: is given some of the searches; None: none.

    Raises:
        UserError: the journal is damaged.
    """

    def __init__(self, path: Path, shard: Shard | None = None, monitor: RecallMonitor | None = None) -> None:
        self._journal, self._shard, self._monitor = Journal(path), shard, monitor
        self._lock = threading.RLock()
        # Ids in the order of being taken down; version -> new items in the order of being added.
        self._removed: dict[ItemId, None] = {}
        self._added: dict[str, dict[ItemId, _New]] = {}
        # Counts the records that were read: a view of another number is out of date.
        self.number = 0
        self.refresh()

    def open(self, folder: Path, manifest: Manifest, known_items: IdMap) -> ChangedItems:
        """The index of a release, with what has changed; for `Host`."""
        return ChangedItems(ItemSearch(folder, manifest, known_items, self._shard), self, self._monitor)

    def refresh(self) -> None:
        """Read what any process of this host has written since."""
        if not self._journal.has_news:
            return
        with self._lock:
            for record in self._journal.news():
                self._apply(record)
                self.number += 1

    def take_down(self, item_ids: Sequence[ItemId]) -> int:
        """Never show these items again, in no version; returns when that is durable. The number that was shown so far.

        Ids that no release has are fine: one that is loaded later may have them.
        """
        with self._lock:
            self.refresh()
            new = [item for item in dict.fromkeys(item_ids) if item not in self._removed]
            if new:
                self._journal.write({"take_down": new})
                self.refresh()
            return len(new)

    def add(self, additions: Additions, items: ChangedItems) -> int:
        """Add items to the index of one version; returns when that is durable. What was added before is replaced.

        Raises:
            UserError: they are of another version, or do not fit it, or one is in the index already or was taken down.
        """
        with self._lock:
            self.refresh()
            ids = items.check_additions(additions)
            for number, item in enumerate(ids):
                if item in self._removed:
                    raise UserError(f"items[{number}].item_id: {item!r} was taken down")
            if ids:
                content = base64.b64encode(additions.embeddings.astype("<f4").tobytes()).decode()
                rows = [{name: _plain(value) for name, value in item.items()} for item in additions.items]
                self._journal.write({"add": rows, "version": additions.version, "embeddings": content})
                self.refresh()
            return len(ids)

    def of(self, version: str) -> tuple[int, list[ItemId], list[_New]]:
        """Number of the state, ids that must not be shown, and new items of a version that may be."""
        with self._lock:
            new = self._added.get(version, {})
            shown = [new[item] for item in new if item not in self._removed and self._is_mine(item)]
            return self.number, list(self._removed), shown

    def _is_mine(self, item: ItemId) -> bool:
        # All hosts are given every new item, and each item has one shard, the same in every process.
        return self._shard is None or zlib.crc32(repr(item).encode()) % self._shard.count == self._shard.number

    def _apply(self, record: Mapping[str, Any]) -> None:
        if "take_down" in record:
            self._removed |= dict.fromkeys(record["take_down"])
            return
        rows = record["add"]
        embeddings = np.frombuffer(base64.b64decode(record["embeddings"]), "<f4").reshape(len(rows), -1)
        added = self._added.setdefault(record["version"], {})
        for item, embedding in zip(rows, embeddings, strict=True):
            added[item["item_id"]] = _New(item, embedding)


class _View(NamedTuple):
    """What a search needs of one state of the changes.

    Attributes:
        number: of the state.
        filter: of the index's rows, those of removed items left out.
        ids, embeddings, row_of, beside: of the new items; A of them. `beside` filters them.
    """

    number: int
    filter: ItemFilter
    ids: list[ItemId]
    embeddings: Float32Array
    row_of: dict[ItemId, int]
    beside: ItemFilter


class ChangedItems:
    """The index of one release with the changes of its host: what a `Host` searches.

    Args:
        base: as the release has it.
        changes: of the host.
        monitor: is given some of the searches; None: none.
    """

    def __init__(self, base: ItemSearch, changes: Changes, monitor: RecallMonitor | None = None) -> None:
        self.base, self.manifest, self._changes, self._monitor = base, base.manifest, changes, monitor
        self._state: _View | None = None
        self._lock = threading.Lock()

    @property
    def version(self) -> str:
        """Of the release that the index belongs to."""
        return self.base.version

    def search(
        self,
        embeddings: Float32Array,
        k: int,
        filter: Filter | None = None,
        exclude: Sequence[Sequence[ItemId]] | None = None,
    ) -> list[Hits]:
        """As `ItemSearch.search`, new items among the others and removed ones left out."""
        view = self._view()
        allow = view.filter(filter or {})
        excluded = None if exclude is None else self.base.rows_of_items(exclude)
        if self._monitor is not None and len(embeddings) and self._monitor.wants():
            of_first = np.zeros(0, np.int32) if excluded is None else excluded.values[: excluded.offsets[1]]
            query = embeddings[0] if embeddings.ndim == 2 else embeddings[0, 0]
            self._monitor.put(Sample(self.version, self.base.index, self.base.embeddings, query, k, allow, of_first))
        if not view.ids:
            return self.base.hits(*search_users(self.base.index, embeddings, k=k, allow=allow, exclude=excluded))
        beside = view.beside(filter or {})
        index = ExtendedIndex(self.base.index, view.embeddings, allowed=None if beside is None else beside.rows)
        if exclude is not None and excluded is not None:
            num_items = self.base.index.num_items
            more = [[num_items + view.row_of[item] for item in row if item in view.row_of] for row in exclude]
            excluded = _joined(excluded, more)
        return self.base.hits(*search_users(index, embeddings, k=k, allow=allow, exclude=excluded), view.ids)

    def check(self) -> None:
        """As `ItemSearch.check`: of the index as it was built."""
        self.base.check()

    def close(self) -> None:
        """The monitor tells no more of a version that was unloaded."""
        if self._monitor is not None:
            self._monitor.forget(self.version)
        self.base.close()

    def check_additions(self, additions: Additions) -> list[ItemId]:
        """Ids of items that may be added.

        Raises:
            UserError: they are of another version, or do not fit this one, or one is in its index already.
        """
        if additions.version != self.version:
            raise UserError(f"version: found embeddings of {additions.version}, expected {self.version}")
        shape = (len(additions.items), self.manifest.dim)
        if additions.embeddings.shape != shape:
            raise UserError(f"embeddings: found shape {list(additions.embeddings.shape)}, expected {list(shape)}")
        if not np.isfinite(additions.embeddings).all():
            raise UserError("embeddings: found nan or inf, expected finite numbers")
        ids: list[ItemId] = to_table(additions.items, self.base.items.schema)["item_id"].to_pylist()
        rows = self.base.rows_of_items([[item] for item in ids])
        there = np.diff(rows.offsets) > 0
        seen: set[ItemId] = set()
        for number, item in enumerate(ids):
            place = f"items[{number}].item_id"
            if item is None:
                raise UserError(f"{place}: missing")
            if item in seen:
                raise UserError(f"{place}: {item!r} is there twice")
            if there[number]:
                raise UserError(f"{place}: {item!r} is in the index of {self.version} already")
            seen.add(item)
        return ids

    def _view(self) -> _View:
        """Of the latest state."""
        self._changes.refresh()
        view = self._state
        if view is None or view.number != self._changes.number:
            with self._lock:
                view = self._state
                if view is None or view.number != self._changes.number:
                    view = self._state = self._make_view()
        return view

    def _make_view(self) -> _View:
        number, removed, new = self._changes.of(self.version)
        rows = self.base.rows_of_items([removed]).values.astype(np.int64)
        table = to_table([one.item for one in new], self.base.items.schema)
        ids: list[ItemId] = table["item_id"].to_pylist()
        embeddings = np.array([one.embedding for one in new], np.float32).reshape(len(new), self.manifest.dim)
        return _View(
            number=number,
            filter=self.base.item_filter.without(rows),
            ids=ids,
            embeddings=embeddings,
            row_of={item: row for row, item in enumerate(ids)},
            beside=ItemFilter(table),
        )


def _joined(rows: Ragged, more: Sequence[Sequence[int]]) -> Ragged:
    """Each row of `rows` with those of `more` behind it."""
    if not any(more):
        return rows
    parts = [
        np.concatenate([rows.values[begin:end], np.array(behind, np.int32)])
        for begin, end, behind in zip(rows.offsets[:-1], rows.offsets[1:], more, strict=True)
    ]
    return Ragged(np.concatenate(parts), np.concatenate([[0], np.cumsum([len(part) for part in parts])]))


def _plain(value: Any) -> Any:
    """As JSON has it; dates and times as ISO 8601."""
    return value.isoformat() if isinstance(value, date) else value
