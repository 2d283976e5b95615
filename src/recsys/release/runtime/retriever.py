"""Answers requests with one release: raw values in, ranked items out. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys.core.columns import Ragged
from recsys.core.schema import Feature
from recsys.core.types import Float32Array
from recsys.data.encoding import FeatureEncoder
from recsys.release.manifest import Manifest
from recsys.release.runtime.item_ids import Filter
from recsys.release.runtime.item_search import ItemSearch
from recsys.release.runtime.query_encoder import ItemId, Query, QueryEncoder, load_known_items
from recsys.release.runtime.user_tower import Histories
from recsys.release.store import ReleaseStore

__all__ = ["Answer", "ItemId", "Query", "Retriever", "seen_items"]


@dataclass(frozen=True)
class Answer:
    """Ranked items of one request.

    Attributes:
        item_ids: best first; where a user has several embeddings, these take turns.
        scores: float32, of the same length; each from the embedding that brought the item.
        history_length: events that the tower read.
        unknown_items: distinct items of the history that the release does not know, in order; the tower read them as
            unknown ones.
    """

    item_ids: list[ItemId]
    scores: Float32Array
    history_length: int
    unknown_items: list[ItemId]


class Retriever:
    """One verified release, ready to answer: its two halves, together.

    Args:
        folder: of the release.
        manifest: what `verify_release` gave for it.
        threads: of one call of the tower; 0 for as many as there are cores.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int = 0) -> None:
        self.folder, self.manifest = folder, manifest
        self.known_items = load_known_items(folder)
        self.query_encoder = QueryEncoder(folder, manifest, self.known_items, threads)
        self.item_search = ItemSearch(folder, manifest, self.known_items)
        self.schema, self.tower = self.query_encoder.schema, self.query_encoder.tower
        self.index, self.items = self.item_search.index, self.item_search.items
        self.query_encoder.check()
        self.item_search.check()

    @classmethod
    def load(cls, store: str | Path, release: str, threads: int = 0) -> Retriever:
        """Open a release by version or alias.

        Raises:
            UserError: there is no such release, or it is not what it says.
        """
        folder, manifest = ReleaseStore(store).open(release)
        return cls(folder, manifest, threads)

    @property
    def version(self) -> str:
        """Of the release."""
        return self.manifest.version

    @property
    def request_encoders(self) -> Mapping[str, FeatureEncoder]:
        """Encoders of the request features that the tower reads."""
        return self.query_encoder.request_encoders

    def retrieve(
        self, queries: Sequence[Query], k: int = 100, exclude_seen: bool = True, filter: Filter | None = None
    ) -> list[Answer]:
        """The k best items for each query; fewer where the filter and exclusions leave fewer.

        Args:
            queries: B requests.
            k: items for each.
            exclude_seen: leave out the items of the whole history.
            filter: column -> value or values, over the columns of the release's items.

        Raises:
            UserError: a feature, column or value that the release does not know what to do with.
        """
        histories, unknown = self.encode(queries)
        excluded = [[*(seen_items(query) if exclude_seen else []), *query.exclude] for query in queries]
        hits = self.item_search.search(self.tower(histories), k, filter, excluded)
        lengths = histories.lengths.tolist()
        return [
            Answer(found.item_ids, found.scores, lengths[number], unknown[number]) for number, found in enumerate(hits)
        ]

    def embed(self, queries: Sequence[Query]) -> Float32Array:
        """User embeddings float32 [B, D], or [B, M, D] of towers that give several."""
        return self.query_encoder.embed(queries)

    def encode(self, queries: Sequence[Query]) -> tuple[Histories, list[list[ItemId]]]:
        """What the tower reads of the queries, and each query's distinct unknown items."""
        return self.query_encoder.encode(queries)

    def user_rows(self, ids: pa.Array) -> npt.NDArray[np.int64]:
        """The tower's index of each user, -1 for those that it has no embedding for."""
        return self.query_encoder.user_rows(ids)

    def index_rows(self, items: Ragged) -> Ragged:
        """Rows of the index for rows of item_idx; those that it does not hold are left out."""
        return self.item_search.index_rows(items)

    def encoder(self, feature: Feature) -> FeatureEncoder:
        """The encoder of a feature, as in training."""
        return self.query_encoder.encoder(feature)


def seen_items(query: Query) -> list[ItemId]:
    """Items of the whole history."""
    return [event["item_id"] for event in query.history]
