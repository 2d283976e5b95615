"""Retrieval from one release in process: returns ranked items for raw values of requests. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recsys.core.types import Float32Array
from recsys.release.bounds import damaged
from recsys.release.limits import memory_limit, memory_of
from recsys.release.manifest import Manifest
from recsys.release.runtime.item_ids import Filter
from recsys.release.runtime.item_search import ItemSearch
from recsys.release.runtime.query_encoder import ItemId, Query, QueryEncoder, load_known_items
from recsys.release.store import ReleaseStore

__all__ = ["Answer", "ItemId", "Query", "Retriever", "seen_items"]


@dataclass(frozen=True)
class Answer:
    """Ranked items for one request.

    Attributes:
        item_ids: ids, best first; several embeddings of a user take turns.
        scores: float32, of the same length; each is the score of the embedding that found the item.
        history_length: number of events that the tower read.
        unknown_items: distinct items of the history that the release does not know, in order.
    """

    item_ids: list[ItemId]
    scores: Float32Array
    history_length: int
    unknown_items: list[ItemId]


class Retriever:
    """Both halves of one verified release. `threads` are those of one call of the tower; 0 for one per core."""

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int = 0) -> None:
        self.folder, self.manifest = folder, manifest
        with damaged(folder), memory_limit(memory_of(manifest)):
            self.known_items = load_known_items(folder, manifest)
            self.query_encoder = QueryEncoder(folder, manifest, known_items=self.known_items, threads=threads)
            self.item_search = ItemSearch(folder, manifest, known_items=self.known_items)
            self.schema, self.tower = self.query_encoder.schema, self.query_encoder.tower
            self.index, self.items = self.item_search.index, self.item_search.items
            self.query_encoder.check()
            self.item_search.check()

    @classmethod
    def load(
        cls, store: str | Path, release: str, *, threads: int = 0, require_signature: Path | None = None
    ) -> Retriever:
        """Open a release by version or alias; raise `UserError` if there is none, or it is damaged or not signed."""
        folder, manifest = ReleaseStore(store, require_signature=require_signature).open(release)
        return cls(folder, manifest, threads=threads)

    @property
    def version(self) -> str:
        """Version of the release."""
        return self.manifest.version

    def retrieve(
        self, queries: Sequence[Query], k: int = 100, *, exclude_seen: bool = True, filter: Filter | None = None
    ) -> list[Answer]:
        """Return the k best items for each query; fewer if filter and exclusions leave fewer.

        `exclude_seen` leaves out the items of the whole history. `filter` maps columns of the items to values.

        Raises:
            UserError: If a feature, column or value does not fit the release.
        """
        histories, unknown = self.query_encoder.encode(queries)
        excluded = [[*(seen_items(query) if exclude_seen else []), *query.exclude] for query in queries]
        hits = self.item_search.search(self.tower(histories), k, filter=filter, exclude=excluded)
        lengths = histories.lengths.tolist()
        return [
            Answer(found.item_ids, found.scores, lengths[number], unknown[number]) for number, found in enumerate(hits)
        ]

    def embed(self, queries: Sequence[Query]) -> Float32Array:
        """Return user embeddings float32 [B, D], or [B, M, D] if the tower returns several per user."""
        return self.query_encoder.embed(queries)


def seen_items(query: Query) -> list[ItemId]:
    """Return the items of the whole history."""
    return [event["item_id"] for event in query.history]
