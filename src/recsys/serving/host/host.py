"""An ANN host: item halves of releases, side by side, each searched only by its own version. Imports no torch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from recsys.core.errors import nearest
from recsys.core.types import Float32Array
from recsys.release.manifest import Manifest
from recsys.release.runtime.item_ids import Filter, IdMap
from recsys.release.runtime.item_search import Hits, ItemSearch
from recsys.release.runtime.query_encoder import ItemId
from recsys.release.runtime.shard import Shard
from recsys.serving.host.releases import Releases
from recsys.serving.http.messages import ModelVersions, SearchRequest, SearchResponse, SearchResult, Versions
from recsys.serving.http.problems import Problem, VersionNotHeld, bad_request

# Classes of index that look at every item, and from how many inner products on a search takes milliseconds.
EXACT = ("Exact", "FaissFlat")
MANY = 10_000_000


class Searcher(Protocol):
    """What a host searches: `ItemSearch`, or something around it."""

    manifest: Manifest

    @property
    def version(self) -> str:
        """Of the release that the index belongs to."""
        ...

    def search(
        self,
        embeddings: Float32Array,
        k: int,
        filter: Filter | None = None,
        exclude: Sequence[Sequence[ItemId]] | None = None,
    ) -> list[Hits]:
        """The k best items for each user; see `ItemSearch.search`."""
        ...

    def check(self) -> None:
        """Raise UserError where the index does not find what it found when the release was made."""
        ...

    def close(self) -> None:
        """It was unloaded: nothing more is told of it."""
        ...


class Host:
    """Loaded versions of each model, one of which is served. Thread-safe; a search takes no lock.

    Args:
        releases: where versions are loaded from.
        name: of this host, as answers tell it.
        open_index: makes what is searched from folder, manifest and ids of a release.
        shard: of the corpus, that `open_index` searches; None: all of it.
    """

    def __init__(
        self,
        releases: Releases,
        name: str,
        open_index: Callable[[Path, Manifest, IdMap], Searcher] = ItemSearch,
        shard: Shard | None = None,
    ) -> None:
        self.name, self._shard = name, None if shard is None else str(shard)
        self._releases, self._open_index = releases, open_index
        # Replaced, never changed: a search reads one state of them.
        self._loaded: dict[str, dict[str, Searcher]] = {}
        self._serving: dict[str, str] = {}
        self._lock = threading.RLock()

    @property
    def is_ready(self) -> bool:
        """Whether it serves something; what it serves has answered its self-check."""
        return bool(self._serving)

    def version(self) -> Versions:
        """Model -> what is served and loaded; loaded in the order of loading."""
        return {
            model: ModelVersions(self._serving.get(model), list(loaded), self._shard)
            for model, loaded in self._loaded.items()
        }

    def load(self, name: str) -> str:
        """Load a version or alias beside what is there; the version. It is verified and has answered its self-check.

        Raises:
            UserError: there is no such release, it is not what it says, or its index does not answer as it should.
        """
        with self._lock:
            folder, manifest = self._releases.open(name)
            model, version = manifest.model, manifest.version
            held = self._loaded.get(model, {})
            if version not in held:
                index = self._open_index(folder, manifest, self._releases.known_items(version))
                index.check()
                # What reading the tables took and they do not need.
                pa.default_memory_pool().release_unused()
                self._loaded = {**self._loaded, model: {**held, version: index}}
            return version

    def serve(self, version: str, model: str | None = None) -> None:
        """Make a loaded version the one that is served: requests are directed to it from now on.

        Raises:
            Problem: it is not loaded (409).
        """
        with self._lock:
            model = self._model_of(version, model)
            self._index(model, version)
            self._serving = {**self._serving, model: version}

    def require(self, version: str, model: str | None = None) -> None:
        """Refuse a version that is not loaded.

        Raises:
            Problem: it is not (409), or there is no such model (400).
        """
        self._index(self._model_of(version, model), version)

    def unload(self, version: str, model: str | None = None) -> None:
        """Let go of a version; searches that have begun finish.

        Raises:
            Problem: it is not loaded, or is served (409).
        """
        with self._lock:
            model = self._model_of(version, model)
            index = self._index(model, version)
            if self._serving.get(model) == version:
                message = f"version: {version} is served; serve another one first"
                raise Problem(409, "is_serving", message=message, field="version")
            self._loaded = {
                **self._loaded,
                model: {name: index for name, index in self._loaded[model].items() if name != version},
            }
            index.close()

    def trim(self, keep: int) -> None:
        """Unload the versions that were loaded first, until each model has at most `keep`; what is served stays."""
        with self._lock:
            for model, loaded in list(self._loaded.items()):
                idle = [version for version in loaded if version != self._serving.get(model)]
                for version in idle[: max(0, len(loaded) - keep)]:
                    self.unload(version, model)

    async def answer(self, request: SearchRequest) -> SearchResponse:
        """As `search`, for an event loop: what takes long is searched in a thread, so that probes are answered."""
        if self._takes_long(request):
            return await asyncio.to_thread(self.search, request)
        return self.search(request)

    def _takes_long(self, request: SearchRequest) -> bool:
        held = next((loaded[request.version] for loaded in self._loaded.values() if request.version in loaded), None)
        if held is None:
            return False
        manifest = held.manifest
        # Of whatever shape they are: nothing has looked at it yet.
        compared = manifest.num_items * (request.embeddings.size // manifest.dim)
        return request.filter is not None or (manifest.index["class"] in EXACT and compared > MANY)

    def search(self, request: SearchRequest) -> SearchResponse:
        """Results from the version that the request names, and from no other.

        Raises:
            Problem: the host does not hold that version (409), or the request does not fit it (400).
            UserError: likewise, by a filter's value.
        """
        model = self._model_of(request.version, request.model)
        index = self._index(model, request.version)
        embeddings, manifest = request.embeddings, index.manifest
        expected = (manifest.dim,) if embeddings.ndim == 2 else (manifest.num_embeddings, manifest.dim)
        if embeddings.ndim not in (2, 3) or embeddings.shape[1:] != expected:
            raise bad_request(f"embeddings: found {list(embeddings.shape)}, expected [B, {manifest.dim}]", "embeddings")
        if not np.isfinite(embeddings).all():
            raise bad_request("embeddings: found nan or inf, expected finite float32 numbers", "embeddings")
        if request.exclude is not None and len(request.exclude) != len(embeddings):
            found, wanted = len(request.exclude), len(embeddings)
            raise bad_request(f"exclude: found {found} lists, expected one for each of {wanted} users", "exclude")
        hits = index.search(embeddings, request.k, request.filter, request.exclude)
        return SearchResponse(index.version, [SearchResult(*found) for found in hits])

    def held(self, version: str, model: str | None = None) -> Searcher:
        """What is searched for a version.

        Raises:
            Problem: the host does not hold it (409).
        """
        return self._index(self._model_of(version, model), version)

    def _model_of(self, version: str, model: str | None) -> str:
        """The model that a request means."""
        if model is None:
            holders = [name for name, loaded in self._loaded.items() if version in loaded]
            # A version is a hash over content, the model's name included: it has one holder.
            if holders or len(self._loaded) == 1:
                return (holders or list(self._loaded))[0]
            raise VersionNotHeld(version, serving=None, loaded=[v for held in self._loaded.values() for v in held])
        if model not in self._loaded:
            raise bad_request(f"model: found {model}{nearest(model, self._loaded)}", "model")
        return model

    def _index(self, model: str, version: str) -> Searcher:
        loaded = self._loaded[model]
        if version not in loaded:
            raise VersionNotHeld(version, serving=self._serving.get(model), loaded=list(loaded))
        return loaded[version]
