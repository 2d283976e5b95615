"""The releases that one process has opened: each is verified once, and shared parts are held once. Imports no torch."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path

from recsys.release.manifest import Manifest
from recsys.release.runtime.item_ids import IdMap
from recsys.release.runtime.query_encoder import load_known_items
from recsys.release.store import ReleaseStore


class ReleaseCache:
    """Verified releases of a store. Thread-safe."""

    def __init__(self, store: str | Path) -> None:
        self.store = ReleaseStore(store)
        self._verified: dict[str, tuple[Path, Manifest]] = {}
        self._items: weakref.WeakValueDictionary[str, IdMap] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def open(self, name: str) -> tuple[Path, Manifest]:
        """Return folder and manifest of a version or alias. A release never changes, so it is verified once."""
        version = self.store.resolve(name)
        with self._lock:
            if version not in self._verified:
                self._verified[version] = self.store.open(version)
            return self._verified[version]

    def known_items(self, version: str) -> IdMap:
        """Return the ids of the item vocabulary; tower and index share them while one of the two is loaded."""
        folder, manifest = self.open(version)
        with self._lock:
            items = self._items.get(version)
            if items is None:
                items = self._items[version] = load_known_items(folder, manifest)
            return items
