"""The releases that one process has opened: each is verified once, and shared parts are held once. Imports no torch."""

from __future__ import annotations

import os
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from recsys.release.manifest import Manifest
from recsys.release.runtime.item_ids import IdMap
from recsys.release.runtime.query_encoder import load_known_items
from recsys.release.runtime.shard import CorpusShard
from recsys.release.store import ReleaseStore
from recsys.release.trial import try_release
from recsys.release.verification import verify_again
from recsys.serving.observability.metrics import SHARED_FOLDER


def try_once(folder: Path, shard: CorpusShard | None = None, *, seconds: float, most: int | None) -> None:
    """Open a release in another process, once for all processes of a server: each takes the memory of the release.

    Raises:
        UserError: If the trial fails.
    """
    shared = os.environ.get(SHARED_FOLDER)
    if shared is None:
        try_release(folder, seconds=seconds, most=most, shard=shard)
        return
    passed = Path(shared) / f"trial-{folder.name}"
    with FileLock(f"{passed}.lock"):
        if not passed.exists():
            try_release(folder, seconds=seconds, most=most, shard=shard)
            passed.touch()


class ReleaseCache:
    """Verified releases of a store. Thread-safe; releases are verified independently of each other.

    Args:
        store: folder of the store.
        trial: opens a release in another process before this one does; None for no trial.
        shard: shard whose part is opened instead of the whole, if a release has one; None for the whole.
    """

    def __init__(
        self,
        store: str | Path,
        trial: Callable[[Path, CorpusShard | None], None] | None = None,
        *,
        shard: CorpusShard | None = None,
    ) -> None:
        self.store, self._trial, self._shard = ReleaseStore(store), trial, shard
        self._verified: dict[str, tuple[Path, Manifest]] = {}
        self._opening: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
        self._items: weakref.WeakValueDictionary[str, IdMap] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def open(self, name: str) -> tuple[Path, Manifest]:
        """Return folder and manifest of a version or alias. A release never changes, so it is verified once."""
        version = self.store.resolve(name)
        with self._of(version):
            if version not in self._verified:
                self.store.check_signature(version)
                if self._trial is not None:
                    self._trial(self.store.root / version, self._shard)
                part = None if self._shard is None else self.store.open_part(version, self._shard)
                self._verified[version] = part or self.store.open(version)
            return self._verified[version]

    def verify_again(self, version: str) -> None:
        """Compare the files of an opened release with its manifest again, unless its folder was deleted.

        Raises:
            UserError: If one has changed.
        """
        folder, manifest = self._verified[version]
        if folder.exists():
            verify_again(folder, manifest)

    def known_items(self, version: str) -> IdMap:
        """Return the ids of the item vocabulary; tower and index share them while one of the two is loaded."""
        folder, manifest = self.open(version)
        with self._of(version):
            items = self._items.get(version)
            if items is None:
                items = self._items[version] = load_known_items(folder, manifest)
            return items

    def _of(self, version: str) -> threading.RLock:
        with self._lock:
            return self._opening[version]
