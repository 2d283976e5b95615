"""Items like some items: the mean of their directions, searched like a user. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recsys.core.types import Float32Array
from recsys.release.files import read_embeddings, read_table
from recsys.release.manifest import ITEMS
from recsys.release.runtime.item_ids import IdMap
from recsys.serving.async_lru import AsyncLRU
from recsys.serving.gateway.router import Router
from recsys.serving.host.releases import ReleaseCache
from recsys.serving.http.messages import ScoredItem, SearchRequest, SimilarRequest, SimilarResponse
from recsys.serving.http.problems import Problem, VersionNotHeld, bad_request
from recsys.serving.impressions.recorder import ImpressionRecorder
from recsys.serving.impressions.records import SIMILAR

_ATTEMPTS = 5


class ItemVectors:
    """Embeddings of the items of a release, [N, D]."""

    def __init__(self, releases: ReleaseCache, version: str) -> None:
        folder, self.manifest = releases.open(version)
        self._known: IdMap = releases.known_items(version)
        self._embeddings: Float32Array = read_embeddings(folder, self.manifest)
        item_idx = np.asarray(read_table(folder, ITEMS, self.manifest, columns=["item_idx"])["item_idx"])
        self._row_of_item = np.full(len(self._known) + 1, -1)
        self._row_of_item[item_idx] = np.arange(len(item_idx))
        # The last dimension of a model with item biases says nothing about similarity.
        biases = self.manifest.new_item_biases
        self._dim = self.manifest.dim - (1 if biases and biases[-1] is not None else 0)

    def query(self, item_ids: Sequence[int | str]) -> tuple[Float32Array, list[int | str]]:
        """Return the mean direction of the items as a user's embeddings, [1, D] or [1, M, D], and unknown items."""
        rows = self._row_of_item[self._known.rows(item_ids) + 1]
        unknown = [item for item, row in zip(item_ids, rows.tolist(), strict=True) if row < 0]
        vectors = np.array(self._embeddings[rows[rows >= 0]], np.float32)[:, : self._dim]
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        mean = vectors.mean(axis=0) if len(vectors) else np.zeros(self._dim, np.float32)
        query = np.zeros((1, self.manifest.num_embeddings, self.manifest.dim), np.float32)
        query[0, 0, : self._dim] = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return (query[:, 0] if self.manifest.num_embeddings == 1 else query), unknown


class SimilarItems:
    """Answers requests for similar items; `size` releases are kept."""

    def __init__(
        self,
        router: Router,
        releases: ReleaseCache,
        size: int,
        *,
        load_seconds: float,
        impressions: ImpressionRecorder | None = None,
    ) -> None:
        self._router, self._impressions = router, impressions
        self._vectors = AsyncLRU(
            lambda version: ItemVectors(releases, version), size, retry_seconds=5.0, load_seconds=load_seconds
        )

    async def similar(self, request: SimilarRequest) -> SimilarResponse:
        """Return the items nearest to the given ones, without these."""
        for attempt in range(_ATTEMPTS):
            assignment = self._router.assign(None, request.version)
            version = assignment.version
            query, unknown = (await self._vectors.get(version)).query(request.item_ids)
            if len(unknown) == len(request.item_ids):
                raise bad_request(f"item_ids: found {unknown[0]!r}, expected items of {version}", "item_ids")
            exclude = [[*request.item_ids, *(request.exclude or ())]]
            search = SearchRequest(
                version, query, request.k, request.filter, exclude, self._router.model, request.quotas
            )
            try:
                routed = await self._router.search(assignment, search)
            except VersionNotHeld:
                if request.version is not None or attempt == _ATTEMPTS - 1:
                    raise
                continue
            (found,) = routed.response.results
            items = list(map(ScoredItem, found.item_ids, found.scores.tolist()))
            answer = SimilarResponse(items, version, routed.response.version, "+".join(routed.hosts), unknown)
            if self._impressions is not None:
                answer.impression_id = self._impressions.record(
                    None, version, generator=SIMILAR, item_ids=found.item_ids
                )
            return answer
        raise Problem(503, "unavailable", message="the served version keeps changing")
