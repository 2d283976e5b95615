"""A release as a Python object that recommends, embeds and evaluates. Imports torch only if `data` is given."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from recsys.core.errors import UserError
from recsys.core.types import Float32Array
from recsys.data.dataset import Part
from recsys.publishing.answers import check_k, measure, ranked_lists, similar_items, user_vectors, vector_table
from recsys.publishing.audience import Unknown, Users, audience_of, check_unknown
from recsys.publishing.batch_recommend import BATCH
from recsys.publishing.event_queries import queries_of
from recsys.publishing.frames import Frame, like, ranked_table
from recsys.release.files import read_config
from recsys.release.manifest import Manifest
from recsys.release.runtime.query_encoder import Query
from recsys.release.runtime.retriever import Retriever

if TYPE_CHECKING:
    from recsys.publishing.recommenders import ReleaseRecommender


class OpenedRelease:
    """A release: its exported user tower and its item index.

    A release does not hold the histories of users. They come from `data`, or from `histories` of a call.

        release = recsys.load_release("production", store="releases", data="own")
        release.recommend(["ann", "bob"], k=10)               # user_id, item_ids, scores
        release.recommend(None, k=10, histories=events)       # events: user_id, item_id, timestamp

    Frames of pandas and Polars come back as such; everything else gives Arrow tables. Ids are those of the release.

    Args:
        retriever: verified release.
        data: folder of Parquet files with histories and profiles; `"own"` for the data that the release was trained
            on; None for none.
    """

    def __init__(self, retriever: Retriever, data: str | Path | None = None) -> None:
        self._retriever, self._data = retriever, data

    @property
    def version(self) -> str:
        """Version of the release."""
        return self._retriever.version

    @property
    def path(self) -> Path:
        """Folder of the release."""
        return self._retriever.folder

    @property
    def manifest(self) -> Manifest:
        """Manifest: model, run, data, metrics and files of the release."""
        return self._retriever.manifest

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the run that the release was made from."""
        return dict(self.manifest.metrics)

    def recommend(
        self,
        users: Users | None,
        k: int = 10,
        *,
        histories: Frame | None = None,
        exclude_seen: bool = True,
        unknown: Unknown = "error",
    ) -> Frame:
        """Rank items for users.

        Args:
            users: ids; a frame with `user_id` and any request features (with `histories`: profile features, too). With
                `data` also `"test"`: everyone in the test part, with the history before it, and `"all"`. None for
                everyone in `histories`.
            k: items for each user.
            histories: events used instead of `data`: a frame with `user_id`, `item_id`, any features of events, and
                perhaps `timestamp`. Without timestamps the order of the frame counts.
            exclude_seen: leave out items of the history.
            unknown: `"error"` refuses an id without a history, `"empty"` ranks for it as for a new user.

        Returns:
            user_id, item_ids (best first) and scores, one row for each user.

        Raises:
            UserError: If there are no histories, or an id is unknown, null, repeated or of another type, or the
                release does not read a column.
        """
        check_k(k)
        if histories is None and self._data is not None:
            recommender = self._recommender
            audience = audience_of(_some_users(users), recommender.dataset, unknown=unknown)
            return like(ranked_lists(recommender, audience, k=k, exclude_seen=exclude_seen), users)
        ids, queries = self._queries(users, histories, unknown)
        answers = [
            answer
            for block in _blocks(queries)
            for answer in self._retriever.retrieve(block, k=k, exclude_seen=exclude_seen)
        ]
        lists, scores = [answer.item_ids for answer in answers], [answer.scores for answer in answers]
        table = ranked_table(ids, lists, scores=scores, kind=self._item_ids.type)
        return like(table, histories if users is None else users)

    def similar(self, item_ids: Iterable[Any], k: int = 10) -> Frame:
        """Return the nearest other items of each item, by cosine of their embeddings.

        Args:
            item_ids: ids of items in the index.
            k: items for each.

        Returns:
            item_id, item_ids and scores, one row for each item.

        Raises:
            UserError: If the index does not hold an item.
        """
        # The last dimension of a model with a bias holds the bias, which says nothing about similarity.
        model = read_config(self.path, self.manifest).model
        shift = model.get("prior_shift")
        has_bias = (shift and shift.weight) or model.get("new_items_offset", "auto") not in ("auto", 0)
        vectors = self._item_vectors[:, :-1] if has_bias else self._item_vectors
        return like(similar_items(item_ids, self._item_ids, embeddings=vectors, k=k), item_ids)

    def user_embeddings(
        self, users: Users | None, *, histories: Frame | None = None, unknown: Unknown = "error"
    ) -> Frame:
        """Return the embeddings of users.

        Args:
            users: as in `recommend`.
            histories: as in `recommend`.
            unknown: as in `recommend`.

        Returns:
            user_id and embedding, one row for each user. The inner product with an item embedding ranks the item.
        """
        if histories is None and self._data is not None:
            audience = audience_of(_some_users(users), self._recommender.dataset, unknown=unknown)
            return like(user_vectors(self._recommender, audience), users)
        ids, queries = self._queries(users, histories, unknown)
        table = vector_table("user_id", ids, embed=lambda rows: self._retriever.embed(queries[rows]))
        return like(table, histories if users is None else users)

    def item_embeddings(self) -> pa.Table:
        """Return the embeddings of the index, as an Arrow table with item_id and embedding."""
        return vector_table("item_id", self._item_ids, embed=lambda rows: self._item_vectors[rows])

    def evaluate(self, part: Part = "test", *, exclude_seen: bool | None = None) -> dict[str, float]:
        """Measure the release on a part of `data`: its index and exported tower, one request per user.

        Args:
            part: `"test"` or `"val"`.
            exclude_seen: leave out items of the history; None for the setting of its run.

        Returns:
            Metrics, named as in `metrics.json` of a run.

        Raises:
            UserError: If the release was opened without `data`, or the data has no such part.
        """
        if self._data is None:
            raise UserError("evaluate: needs histories; open the release with data='own' or data=FOLDER")
        excludes = bool(read_config(self.path, self.manifest).exclude_seen) if exclude_seen is None else exclude_seen
        return measure(self._recommender, part, corpus_size=len(self._item_ids), exclude_seen=excludes)

    def _queries(self, users: Users | None, histories: Frame | None, unknown: Unknown) -> tuple[pa.Array, list[Query]]:
        check_unknown(unknown)
        if isinstance(users, str):
            raise UserError(f"users='{users}': needs the data; open the release with data='own' or data=FOLDER")
        if users is None and histories is None:
            raise UserError("users: found none, expected ids, a data frame, or histories=EVENTS")
        if histories is None and unknown == "error":
            raise UserError(
                "histories: a release has none, so every user would get the list of a new user; open it with "
                "data='own' or data=FOLDER, pass histories=EVENTS, or pass unknown='empty'"
            )
        return queries_of(users, histories, retriever=self._retriever, unknown=unknown)

    @cached_property
    def _recommender(self) -> ReleaseRecommender:
        from recsys.publishing.recommenders import with_data

        return with_data(self._retriever, None if self._data == "own" else str(self._data))

    @cached_property
    def _item_ids(self) -> pa.Array:
        return self._retriever.items["item_id"].combine_chunks()

    @cached_property
    def _item_vectors(self) -> Float32Array:
        return self._retriever.item_search.embeddings

    def __repr__(self) -> str:
        return f"OpenedRelease({self.version!r}, path={str(self.path)!r})"


def _some_users(users: Users | None) -> Users:
    if users is None:
        raise UserError("users: found none, expected ids, a data frame, 'test' or 'all'")
    return users


def _blocks(queries: list[Query]) -> list[list[Query]]:
    return [queries[begin : begin + BATCH] for begin in range(0, len(queries), BATCH)]
