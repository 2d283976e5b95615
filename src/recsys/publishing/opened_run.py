"""A finished run as a Python object that recommends, embeds and evaluates."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from omegaconf import DictConfig

from recsys.core.types import Float32Array
from recsys.data.dataset import Part
from recsys.evaluation.ranking import encode_corpus
from recsys.experiments.assembly import has_item_bias
from recsys.experiments.trained_run import TrainedRun
from recsys.publishing.answers import measure, ranked_lists, similar_items, user_vectors, vector_table
from recsys.publishing.audience import Unknown, Users, audience_of
from recsys.publishing.frames import Frame, like
from recsys.publishing.recommenders import RunRecommender


class OpenedRun:
    """A finished run: trained towers, and the data that they were trained on.

    Frames of pandas and Polars come back as such; everything else gives Arrow tables. Ids are those of the data.

        run = recsys.load_run("runs/first")
        run.recommend(["ann", "bob"], k=10)      # user_id, item_ids, scores
        run.similar(["item-1"], k=5)             # item_id, item_ids, scores
        run.metrics["test/recall@10"]

    Args:
        trained: run that `recsys.experiments.trained_run` opened.
    """

    def __init__(self, trained: TrainedRun) -> None:
        self.trained = trained

    @property
    def path(self) -> Path:
        """Folder of the run."""
        return self.trained.path

    @property
    def config(self) -> DictConfig:
        """Configuration of the run."""
        return self.trained.config

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the run, such as `test/recall@10`."""
        return dict(self.trained.metrics)

    def recommend(self, users: Users, k: int = 10, *, exclude_seen: bool = True, unknown: Unknown = "error") -> Frame:
        """Rank items for users, as `recsys recommend run=RUN` does.

        Args:
            users: ids; a frame with `user_id` and any request features; `"test"`: everyone in the test part, with the
                history before it; `"all"`: everyone.
            k: items for each user.
            exclude_seen: leave out items of the history.
            unknown: `"error"` refuses an id that the data does not have, `"empty"` ranks for it as for a new user.

        Returns:
            user_id, item_ids (best first) and scores, one row for each user.

        Raises:
            UserError: If an id is unknown, null, repeated or of another type, or a column is no request feature.
        """
        audience = audience_of(users, self.trained.dataset, unknown=unknown)
        return like(ranked_lists(self._recommender, audience, k=k, exclude_seen=exclude_seen), users)

    def similar(self, item_ids: Iterable[Any], k: int = 10) -> Frame:
        """Return the nearest other items of each item, by cosine of their embeddings.

        Args:
            item_ids: ids of items in the corpus.
            k: items for each.

        Returns:
            item_id, item_ids and scores, one row for each item.

        Raises:
            UserError: If the corpus does not hold an item.
        """
        # The last dimension of a model with a bias holds the bias, which says nothing about similarity.
        has_shift = has_item_bias(self.config)
        vectors = self._item_vectors[:, :-1] if has_shift else self._item_vectors
        return like(similar_items(item_ids, self._corpus_ids, embeddings=vectors, k=k), item_ids)

    def user_embeddings(self, users: Users, *, unknown: Unknown = "error") -> Frame:
        """Return the embeddings of users.

        Args:
            users: as in `recommend`.
            unknown: as in `recommend`.

        Returns:
            user_id and embedding, one row for each user. The inner product with an item embedding ranks the item.
        """
        audience = audience_of(users, self.trained.dataset, unknown=unknown)
        return like(user_vectors(self._recommender, audience), users)

    def item_embeddings(self) -> pa.Table:
        """Return the embeddings of the corpus, as an Arrow table with item_id and embedding."""
        return vector_table("item_id", self._corpus_ids, embed=lambda rows: self._item_vectors[rows])

    def evaluate(self, part: Part = "test", *, exclude_seen: bool | None = None) -> dict[str, float]:
        """Measure the run on a part of its data: full corpus, exact scores, one request per user.

        Args:
            part: `"test"` or `"val"`; after `refit=true` the validation part belongs to training.
            exclude_seen: leave out items of the history; None for the setting of the run.

        Returns:
            Metrics, named as in `metrics.json`.
        """
        excludes = bool(self.config.exclude_seen) if exclude_seen is None else exclude_seen
        return measure(self._recommender, part, corpus_size=len(self.trained.corpus), exclude_seen=excludes)

    @cached_property
    def _recommender(self) -> RunRecommender:
        return RunRecommender(self.trained)

    @cached_property
    def _corpus_ids(self) -> pa.Array:
        return self.trained.dataset.item_ids.take(pa.array(self.trained.corpus - 1))

    @cached_property
    def _item_vectors(self) -> Float32Array:
        corpus = torch.from_numpy(np.ascontiguousarray(self.trained.corpus))
        vectors: Float32Array = encode_corpus(self.trained.model, corpus).numpy()
        return vectors

    def __repr__(self) -> str:
        return f"OpenedRun({str(self.path)!r})"
