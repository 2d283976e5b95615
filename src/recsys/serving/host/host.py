"""ANN host: the item halves of several releases, each searched only under its own version. Imports no torch."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pyarrow as pa

from recsys.core.errors import UserError, nearest
from recsys.release.runtime.item_search import ItemSearch
from recsys.release.runtime.shard import CorpusShard
from recsys.serving.host.releases import ReleaseCache
from recsys.serving.http.admission import is_late, overloaded
from recsys.serving.http.messages import ModelVersions, SearchRequest, SearchResponse, SearchResult, Versions
from recsys.serving.http.problems import Problem, ServerFault, VersionNotHeld, bad_request
from recsys.serving.pools import SEARCH, Pool
from recsys.serving.quotas import USERS_AT_ONCE, Quotas, search_within

log = logging.getLogger("recsys")

# Results of a search that are turned into ids in the event loop; more would keep it busy for too long.
MAX_RESULTS_IN_LOOP = 20_000

# Opens the index of a release: (folder, manifest, *, known_items).
OpenIndex = Callable[..., ItemSearch]


class Host:
    """Loaded versions of each model, one of which is served. Thread-safe; a search takes no lock.

    Args:
        shard: part of the corpus that these indexes search; None for all of it.
        pool: threads for searches that take long.
    """

    def __init__(
        self,
        releases: ReleaseCache,
        name: str,
        *,
        open_index: OpenIndex = ItemSearch,
        shard: CorpusShard | None = None,
        pool: Pool = SEARCH,
    ) -> None:
        self._pool = pool
        self.name, self._shard = name, None if shard is None else str(shard)
        self._releases, self._open_index = releases, open_index
        # These dictionaries are replaced, never changed, so that a search reads one state of them.
        self._loaded: dict[str, dict[str, ItemSearch]] = {}
        self._serving: dict[str, str] = {}
        self._lock = threading.RLock()
        self._loading: dict[str, Future[None]] = {}
        self._fault: Callable[[], str | None] = lambda: None

    def report_faults(self, fault: Callable[[], str | None]) -> None:
        """Let the host rest while `fault` returns why it cannot answer."""
        self._fault = fault

    def require_ready(self) -> None:
        """Raise `Problem` (503) if the host must not be used; every served version has passed its self-check."""
        if not self._serving:
            raise ServerFault(f"{self.name} serves nothing yet")
        self.require_sound()

    def require_sound(self) -> None:
        """Raise `Problem` (503) if the host rests because of a fault of its own."""
        if (fault := self._fault()) is not None:
            raise ServerFault(f"{self.name} rests: {fault}")

    def version(self) -> Versions:
        """Return model -> versions that are served and loaded, in the order of loading."""
        return {
            model: ModelVersions(self._serving.get(model), list(loaded), self._shard)
            for model, loaded in self._loaded.items()
        }

    def load(self, name: str) -> str:
        """Load a version or alias in addition to the loaded ones, check it, and return the version."""
        folder, manifest = self._releases.open(name)
        model, version = manifest.model, manifest.version
        with self._lock:
            if version in self._loaded.get(model, {}):
                return version
            loading = self._loading.get(version)
            if is_first := loading is None:
                loading = self._loading[version] = Future()
        if not is_first:
            # Another thread loads it.
            loading.result()
            return version
        # Without the lock, so that other versions can be served meanwhile.
        try:
            index = self._open_index(folder, manifest, known_items=self._releases.known_items(version))
            index.check()
            # Free memory that was needed only to read the tables.
            pa.default_memory_pool().release_unused()
            with self._lock:
                self._loaded = {**self._loaded, model: {**self._loaded.get(model, {}), version: index}}
        except BaseException as error:
            loading.set_exception(error)
            raise
        finally:
            del self._loading[version]
        loading.set_result(None)
        return version

    def serve(self, version: str, model: str | None = None) -> str:
        """Serve a loaded version, and return its model: requests without a version get it from now on."""
        with self._lock:
            model = self._model_of(version, model)
            self._index(model, version)
            self._serving = {**self._serving, model: version}
        return model

    def unload(self, version: str, model: str | None = None) -> None:
        """Unload a version; searches that have begun finish. A served version is refused (409)."""
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
        """Unload the versions that were loaded first until each model has at most `keep`; a served version stays."""
        with self._lock:
            for model, loaded in list(self._loaded.items()):
                idle = [version for version in loaded if version != self._serving.get(model)]
                for version in idle[: max(0, len(loaded) - keep)]:
                    self.unload(version, model)

    async def answer(self, request: SearchRequest) -> SearchResponse:
        """Search from an event loop: a search that takes long runs in a thread, so that probes are answered."""
        if self._takes_long(request):
            return await self._pool.run(self._search_in_turn, request)
        return self.search(request)

    def _search_in_turn(self, request: SearchRequest) -> SearchResponse:
        if is_late():
            raise overloaded("the deadline of the request has passed")
        return self.search(request)

    def _takes_long(self, request: SearchRequest) -> bool:
        held = next((loaded[request.version] for loaded in self._loaded.values() if request.version in loaded), None)
        if held is None:
            return False
        if request.embeddings.ndim and len(request.embeddings) * request.k > MAX_RESULTS_IN_LOOP:
            return True
        # The shape of the embeddings is not checked yet.
        num_embeddings = request.embeddings.size // held.manifest.dim
        return held.takes_long(num_embeddings, is_filtered=bool(request.filter or request.quotas))

    def search(self, request: SearchRequest) -> SearchResponse:
        """Search the version that the request names, and no other."""
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
        try:
            if request.quotas:
                return SearchResponse(index.version, _within_quotas(index, request, request.quotas))
            hits = index.search(embeddings, request.k, filter=request.filter, exclude=request.exclude)
        except UserError:
            # Filter or quotas do not fit the release.
            raise
        except Exception as error:
            log.exception("search in %s failed", request.version)
            raise ServerFault(f"{self.name}: the search failed; its log has the reason") from error
        return SearchResponse(index.version, [SearchResult(*found) for found in hits])

    def held(self, version: str, model: str | None = None) -> ItemSearch:
        """Return the index of a version, or raise `Problem` (409) if the host does not hold it."""
        return self._index(self._model_of(version, model), version)

    def _model_of(self, version: str, model: str | None) -> str:
        """Return the model of a request, found by its version if it names none."""
        if model is None:
            holders = [name for name, loaded in self._loaded.items() if version in loaded]
            # A version is a hash over content and name of a model, so only one model has it.
            if holders or len(self._loaded) == 1:
                return (holders or list(self._loaded))[0]
            raise VersionNotHeld(version, serving=None, loaded=[v for held in self._loaded.values() for v in held])
        if model not in self._loaded:
            raise bad_request(f"model: found {model}{nearest(model, self._loaded)}", "model")
        return model

    def _index(self, model: str, version: str) -> ItemSearch:
        loaded = self._loaded[model]
        if version not in loaded:
            raise VersionNotHeld(version, serving=self._serving.get(model), loaded=list(loaded))
        return loaded[version]


def _within_quotas(index: ItemSearch, request: SearchRequest, quotas: Quotas) -> list[SearchResult]:
    results = list[SearchResult]()
    for begin in range(0, len(request.embeddings), USERS_AT_ONCE):
        some = slice(begin, begin + USERS_AT_ONCE)
        exclude = None if request.exclude is None else request.exclude[some]
        search = functools.partial(index.search, request.embeddings[some], filter=request.filter, exclude=exclude)
        groups_of = functools.partial(index.groups, sorted(quotas))
        hits, groups = search_within(search, groups_of, quotas=quotas, k=request.k)
        results += [SearchResult(*found, of_user) for found, of_user in zip(hits, groups, strict=True)]
    return results
