"""The releases that one process has open: each verified once, and what its halves share held once. Imports no torch."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path

from recsys.release.manifest import Manifest
from recsys.release.runtime.item_ids import IdMap
from recsys.release.runtime.query_encoder import load_known_items
from recsys.release.store import ReleaseStore


class Releases:
    """A store, as a server reads it. Thread-safe.

    Args:
        store: folder of releases.
    """

    def __init__(self, store: str | Path) -> None:
        self.store = ReleaseStore(store)
        self._verified: dict[str, tuple[Path, Manifest]] = {}
        self._items: weakref.WeakValueDictionary[str, IdMap] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def open(self, name: str) -> tuple[Path, Manifest]:
        """Folder and manifest of a version or alias. Releases never change, so one is verified once.

        Raises:
            UserError: there is no such release, or it is not what it says.
        """
        version = self.store.resolve(name)
        with self._lock:
            if version not in self._verified:
                self._verified[version] = self.store.open(version)
            return self._verified[version]

    def known_items(self, version: str) -> IdMap:
        """Ids of the vocabulary of items, shared by tower and index for as long as one of them is loaded."""
        folder, _ = self.open(version)
        with self._lock:
            items = self._items.get(version)
            if items is None:
                items = self._items[version] = load_known_items(folder)
            return items
